"""The dblp group: a network of papers and one of their authors, and questions on a paper, an author or two authors.

The networks have the real ones' flaws: authors who share a name and papers that share a title, so the dictionaries
that lead to a node and back do not agree; titles without a node and nodes without a title; papers without pages and
authors without an institution. A paper with a single author is on no edge of the network of authors.
"""

import itertools
import pickle
import random
import string
from dataclasses import dataclass
from pathlib import Path

import networkx  # torch needs it, so it is there

from tools.rehearsal import Template, draw

FULL, FEWEST = 50_000, 1_200                           # papers at scale 1, and what the questions need
FIRST = ("Aiko Alba Anders Bilal Brigitte Chidi Clara Dario Deepa Edda Emre Fabio Fatou Gregor Hamid Helga Ines Ismail "
         "Jakub Jana Kaito Katya Lars Leila Luca Mai Marek Mina Nils Noor Olga Oskar Pavel Rania Rui Sanne Sven Tariq "
         "Ulla Viktor Wei Xin Yara Yusuke Zhen Zora").split()
LAST = ("Abara Bergstrom Castellan Delacroix Eberhart Farouk Gustafson Hashimoto Ivanenko Jankowski Kowalczyk Lindgren "
        "Mahmoudi Nakagawa Okonkwo Petrovic Quintero Ramaswamy Sokolov Takahara Ullmann Vasquez Wetherby Xiong Yamane "
        "Zielinski Adeyemi Brandvold Chaudhary Dragan Eklund Ferrante Gallo Horvat Iglesias Jovanovic").split()
METHODS = ("Sparse|Robust|Incremental|Federated|Bayesian|Self-Supervised|Low-Power|Distributed|Approximate|Adaptive|"
           "Certified|Quantised|Hierarchical|Privacy-Preserving|Energy-Aware").split("|")
THINGS = ("Graph Matching|Speech Segmentation|Code Review|Channel Estimation|Query Planning|Traffic Forecasting|"
          "Image Denoising|Program Repair|Entity Linking|Route Planning|Fault Localisation|Point Clouds|Caching|"
          "Secret Sharing|Crowd Counting|Test Generation").split("|")
ENDS = ("|in Wireless Networks|for Embedded Systems|with Few Labels|: A Survey|under Uncertainty|at Scale|"
        "on Mobile Devices|by Random Projections|without Supervision|: Theory and Practice|in Cities|.").split("|")
CITIES = "Oslo Kyoto Graz Lagos Porto Bogota Leeds Tartu Pune Hanoi Perth Quito Ghent Tunis Minsk Turin".split()


def write_corpus(folder: Path, rng: random.Random, scale: float) -> None:
    """Two networks and four dictionaries; 1,200 papers at least."""
    people, papers = make_papers(rng, max(FEWEST, int(FULL * scale)))
    cites, network = networkx.DiGraph(), networkx.Graph()
    for key, person in people.items():
        network.add_node(key, **person)
    for n, (key, paper) in enumerate(papers.items()):
        cites.add_node(key, **paper)
        cites.add_edges_from((key, f"p{rng.randrange(n)}") for _ in range(min(n, rng.randint(0, 4))))
        for a, b in itertools.combinations([author["id"] for author in paper["authors"]], 2):
            old = network.get_edge_data(a, b, {"weight": 0, "papers": [], "n_citation": []})
            network.add_edge(a, b, weight=old["weight"] + 1, papers=[*old["papers"], key],
                             n_citation=[*old["n_citation"], paper["n_citation"]])
    for n in range(5):                                 # nodes without a title, and titles without a node
        cites.add_edge(f"p{n}", f"nameless{n}")
    titles = {key: paper["title"] for key, paper in papers.items()}
    titles |= {f"lost{n}": f"A Lost Paper {n}" for n in range(5)}
    names = {key: person["name"] for key, person in people.items()}
    for name, data in {"paper_net": cites, "author_net": network, "id2title_dict": titles, "id2author_dict": names,
                       "title2id_dict": {title: key for key, title in titles.items()},
                       "author2id_dict": {name: key for key, name in names.items()}}.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(data))


def make_papers(rng, size):
    """({id: an author}, {id: a paper}); the authors work in groups of three to seven, with a guest now and then."""
    people, groups, papers = {}, [], {}
    initials = [f"{a}. " for a in string.ascii_uppercase]
    middles = ["", *initials, *(f"{a}M. " for a in initials)]              # enough names for scale 1
    full_names = [f"{first} {middle}{last}" for middle in middles for first in FIRST for last in LAST]
    rng.shuffle(full_names)
    for n in range(size // 5):
        city, group = rng.choice(CITIES), []
        for _ in range(rng.randint(3, 7)):
            key = f"a{len(people)}"
            shared = len(people) > 100 and rng.random() < 0.02             # another author's name
            name = people[rng.choice(list(people))]["name"] if shared else full_names.pop()
            org = f"Univ {city}, Dept {rng.choice(('Comp Sci', 'Math', 'Elect Engn'))}, {city}"
            people[key] = {"name": name, "org": org if rng.random() > 0.05 else ""}
            group.append(key)
        groups.append(group)
    for n in range(size):
        if n > 100 and rng.random() < 0.03:            # a paper again, with its number of citations on another day
            paper = papers[f"p{rng.randrange(n)}"]
            papers[f"p{n}"] = paper | {"n_citation": paper["n_citation"] + rng.choice((0, 0, 3))}
            continue
        group = rng.choice(groups)
        writers = rng.sample(group, rng.randint(1, min(5, len(group))))
        if rng.random() < 0.15 and (guest := rng.choice(rng.choice(groups))) not in writers:
            writers.append(guest)
        end, begin = rng.choice(ENDS), rng.randint(1, 900)
        title = f"{rng.choice(METHODS)} {rng.choice(THINGS)} and {rng.choice(METHODS)} {rng.choice(THINGS)}"
        paged = rng.random() > 0.1
        papers[f"p{n}"] = {
            "title": title + (end if end[:1] in ":." else f" {end}" * bool(end)), "year": rng.randint(2018, 2021),
            "authors": [{"id": writer, **people[writer]} for writer in writers],
            "venue": {"raw": rng.choice(("J Syst Softw", "Inf Sci", "Pattern Recognit", "CHI"))}, "doc_type": "Journal",
            "n_citation": int(rng.expovariate(1 / 4)), "keywords": [], "page_start": str(begin) if paged else "",
            "page_end": str(begin + rng.randint(3, 25)) if paged else ""}
    return people, papers


@dataclass
class Corpus:
    """The networks as the files hold them, and what one may ask: names and titles that mean one node."""

    people: dict                                       # {id: an author}
    papers: dict                                       # {id: a paper}
    names: dict                                        # {name: the ids of those who bear it}
    titles: dict                                       # {title: the papers that bear it}
    together: dict                                     # {id: {a collaborator's id: the ids of their papers}}

    def only(self, name):
        return self.names[name][0] if len(self.names[name]) == 1 else None

    def collaborators(self, name):
        """{a collaborator's id: the titles}; None if one of these people shares a name with somebody, or has none."""
        key = self.only(name)
        if key is None or any(self.only(self.people[other]["name"]) is None for other in self.together[key]):
            return None
        return {other: {self.papers[paper]["title"] for paper in papers}
                for other, papers in self.together[key].items()} or None

    def citations(self, title: str) -> object:
        """None if two papers with this title have different numbers."""
        found = {paper["n_citation"] for paper in self.titles[title]}
        return found.pop() if len(found) == 1 else None


def draw_tasks(folder: Path, rng: random.Random) -> dict[str, list[tuple[dict, str]]]:
    cites, network = (pickle.loads((folder / f"{name}.pkl").read_bytes()) for name in ("paper_net", "author_net"))
    people, papers = dict(network.nodes(data=True)), {key: paper for key, paper in cites.nodes(data=True) if paper}
    corpus = Corpus(people, papers, {}, {}, {
        key: {other: edge["papers"] for other, edge in network[key].items()} for key in people})
    for key, person in people.items():
        corpus.names.setdefault(person["name"], []).append(key)
    for paper in papers.values():
        corpus.titles.setdefault(paper["title"], []).append(paper)
    return draw(rng, TEMPLATES, corpus)


def a_title(rng, corpus):
    return {"title": rng.choice(list(corpus.titles))}


def an_author(rng, corpus):
    return {"author": rng.choice(list(corpus.names))}


def two_authors(rng, corpus):
    """Two who wrote together."""
    one = rng.choice(list(corpus.together))
    others = list(corpus.together[one])
    return {"one": corpus.people[one]["name"], "other": corpus.people[rng.choice(others)]["name"]} if others else None


def in_any_order(values):
    """The values with "; " between; a list of all orders if there are several, None if they are more than three."""
    orders = ["; ".join(order) for order in itertools.permutations(sorted(values))] if len(values) < 4 else []
    return orders if len(orders) > 1 else orders[0] if orders and orders[0] else None


def of_paper(answer):
    """An answer from the paper's record; None if several papers have the title."""
    return lambda corpus, title: answer(corpus.titles[title][0]) if len(corpus.titles[title]) == 1 else None


def authors(paper):
    return ", ".join(author["name"] for author in paper["authors"])


def institutions(paper):
    """In any order. None if an author has none."""
    found = {author["org"] for author in paper["authors"]}
    return None if "" in found else in_any_order(found)


def pages(paper):
    return str(int(paper["page_end"]) - int(paper["page_start"]) + 1) if paper["page_start"] else None


def organization(corpus, author):
    """None for somebody without collaborators, too."""
    key = corpus.only(author)
    return corpus.people[key]["org"] or None if key and corpus.together[key] else None


def how_many_collaborators(corpus, author):
    found = corpus.collaborators(author)
    return found and str(len(found))


def common_collaborators(corpus, one, other):
    found = corpus.collaborators(one), corpus.collaborators(other)
    return str(len(found[0].keys() & found[1].keys())) if all(found) else None


def titles_together(corpus, one, other):
    return (corpus.collaborators(one) or {}).get(corpus.only(other))


def papers_together(corpus, one, other):
    titles = titles_together(corpus, one, other)
    return titles and str(len(titles))


def citations_together(corpus, one, other):
    citations = list(map(corpus.citations, titles_together(corpus, one, other) or []))
    return str(sum(citations)) if citations and None not in citations else None


def titles_of(corpus, author):
    """None if the author also wrote alone: such a paper is on no edge."""
    found = corpus.collaborators(author)
    alone = any([writer["name"] for writer in paper["authors"]] == [author] for paper in corpus.papers.values())
    return None if alone or found is None else set().union(*found.values())


def how_many_papers(corpus, author):
    titles = titles_of(corpus, author)
    return titles and str(len(titles))


def titles_by(corpus, author):
    return in_any_order(titles_of(corpus, author) or ())


def most(scores):
    """All keys with the largest score, in any order; None if a score is unknown."""
    if not scores or None in scores.values():
        return None
    return in_any_order([key for key, score in scores.items() if score == max(scores.values())])


def most_cited(corpus, author):
    return most({title: corpus.citations(title) for title in titles_of(corpus, author) or ()})


def by_collaborator(score):
    """The collaborators with the largest score of the titles they share with the author."""
    def answer(corpus, author):
        found = corpus.collaborators(author) or {}
        return most({corpus.people[other]["name"]: score(corpus, titles) for other, titles in found.items()})
    return answer


def sum_of_citations(corpus, titles):
    citations = list(map(corpus.citations, titles))
    return None if None in citations else sum(citations)


def papers_around(corpus, author):
    """The titles on all edges of the collaborators."""
    found = [corpus.collaborators(corpus.people[other]["name"]) for other in corpus.collaborators(author) or ()]
    return str(len({title for some in found for titles in some.values() for title in titles})) if found and all(
        found) else None


SAME = " Papers with the same title count as one."
TIED = " If several are equal, give all of them with a semicolon and a space between: '; '."
SIX, EIGHT, SEEN, SEEN_MORE = (6, 1, 3), (8, 1, 5), (9, 1, 0), (13, 1, 0)
TEMPLATES = [
    Template("author", SIX, SEEN, (
        "Who wrote \"{title}\"? Put a comma and a space between the authors: ', '.",
        "List the authors of \"{title}\", with ', ' between them.",
        "Which authors does \"{title}\" have? Write ', ' between two authors."), a_title, of_paper(authors)),
    Template("organization", SIX, (0, 0, 10), (
        "At which organization is {author}?",
        "Which organization does {author} belong to?",
        "Name the organization of {author}."), an_author, organization),
    Template("pages", SIX, (0, 0, 10), (
        "What is the number of pages of \"{title}\"?",
        "How many pages long is \"{title}\"?",
        "Count the pages of \"{title}\"."), a_title, of_paper(pages)),
    Template("how many papers", SIX, SEEN, (
        "How often was \"{title}\" cited, according to the DBLP citation network?",
        "By how many papers was \"{title}\" cited in the DBLP citation network?",
        "Give the number of papers in the DBLP citation network that cite \"{title}\"."),
        a_title, of_paper(lambda paper: str(paper["n_citation"]))),
    Template("how many collaborators", SIX, SEEN, (
        "With how many people did {author} collaborate in the DBLP citation network?",
        "What is the number of collaborators of {author} in the DBLP citation network?",
        "Count the collaborators that {author} has in the DBLP citation network."), an_author, how_many_collaborators),
    Template("papers write together", SIX, SEEN, tuple(wording + SAME for wording in (
        "How many papers of the DBLP citation network are by both {one} and {other}?",
        "What is the number of papers that {one} wrote with {other} in the DBLP citation network?",
        "Count the papers in the DBLP citation network that {one} and {other} wrote together.")),
        two_authors, papers_together),
    Template("papers written by A", SIX, (0, 0, 10), tuple(wording + SAME for wording in (
        "Which papers of the DBLP citation network are by {author}? Put '; ' between two papers.",
        "List the papers that {author} wrote in the DBLP citation network, with '; ' between them.",
        "What has {author} written in the DBLP citation network? Write '; ' between the papers.")),
        an_author, titles_by),
    Template("number of papers written by A", SIX, SEEN, tuple(wording + SAME for wording in (
        "How many papers of the DBLP citation network are by {author}?",
        "What is the number of papers that {author} wrote in the DBLP citation network?",
        "Count the papers by {author} in the DBLP citation network.")), an_author, how_many_papers),
    Template("common collaborators", EIGHT, SEEN_MORE, (
        "How many people are collaborators of both {one} and {other}?",
        "What is the number of collaborators that {one} shares with {other}?",
        "Count the common collaborators of {one} and {other}."), two_authors, common_collaborators),
    Template("most cited paper", EIGHT, SEEN_MORE, tuple(wording + SAME + TIED for wording in (
        "Of the papers by {author} in the DBLP citation network, which was cited most?",
        "Name the most cited paper that {author} wrote in the DBLP citation network.",
        "Which paper by {author} has the most citations in the DBLP citation network?")), an_author, most_cited),
    Template("co-author with the highest citation", EIGHT, (0, 0, 14), tuple(wording + SAME + TIED for wording in (
        "Which co-author's papers with {author} have the most citations in total in the DBLP citation network?",
        "Add up the citations of the papers that {author} wrote with each co-author in the DBLP citation network: "
        "who has the highest total?",
        "By the total citations of the papers they share, who is the highest of {author}'s co-authors in the DBLP "
        "citation network?")), an_author, by_collaborator(sum_of_citations)),
    Template("accumulated citations", EIGHT, SEEN_MORE, tuple(wording + SAME for wording in (
        "How many citations do the papers by {one} together with {other} have in all, in the DBLP citation network?",
        "Add up the citations of all papers of the DBLP citation network that {one} and {other} wrote together.",
        "What is the accumulated number of citations of the papers that {one} shares with {other} in the DBLP "
        "citation network?")), two_authors, citations_together),
    Template("papers by collaborators and others", EIGHT, SEEN_MORE, tuple(wording + SAME for wording in (
        "How many papers did {author} write with collaborators, plus those that the collaborators wrote with others?",
        "Take the papers by {author} with collaborators and those by the collaborators with other people: how many "
        "are they in total?",
        "Count the papers by {author} and collaborators together with the papers by these collaborators and others.")),
        an_author, papers_around),
    Template("collaborate most", EIGHT, (0, 0, 14), tuple(wording + SAME + TIED for wording in (
        "With whom did {author} write the most papers in the DBLP citation network?",
        "Which collaborator shares the most papers with {author} in the DBLP citation network?",
        "Name the person who collaborated with {author} most often in the DBLP citation network.")),
        an_author, by_collaborator(lambda corpus, titles: len(titles))),
    Template("institution", EIGHT, SEEN_MORE, tuple(wording + TIED.replace("equal", "involved") for wording in (
        "Which institutions took part in the study '{title}' in the DBLP citation network?",
        "At which institutions was the work for '{title}' in the DBLP citation network done?",
        "Name each of the institutions behind the study '{title}' in the DBLP citation network, once.")),
        a_title, of_paper(institutions)),
]
