"""The real ToolQA's formats: the importer reads small corpora like the release's, and the tools answer from them."""

import csv
import json
import pickle
import random
import sqlite3

import networkx
import numpy
import pytest

from tools import import_toolqa, plain_pickle, toolqa

FLIGHTS = ("FlightDate,Airline,Origin,Dest,Cancelled,Diverted,CRSDepTime,DepTime,DepDelayMinutes,DepDelay,ArrTime,"
           "ArrDelayMinutes,AirTime,CRSElapsedTime,ActualElapsedTime,Distance,Year,Month,IATA_Code_Marketing_Airline,"
           "Flight_Number_Marketing_Airline,TaxiIn,CRSArrTime,ArrDelay").split(",")
AIRBNB = ("id,NAME,host id,host_identity_verified,host name,neighbourhood group,neighbourhood,lat,long,country,"
          "country code,instant_bookable,cancellation_policy,room type,Construction year,price,service fee,"
          "minimum nights,number of reviews,last review,reviews per month,review rate number,"
          "calculated host listings count,availability 365,house_rules,license").split(",")


def write_csv(file, header, rows):
    file.parent.mkdir(parents=True)
    with open(file, "w", newline="") as f:
        csv.writer(f).writerows([header, *rows])

def write_lines(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A folder like the release's external_corpus."""
    folder, rng = tmp_path_factory.mktemp("external_corpus"), random.Random(0)
    flights = [[f"2022-0{rng.randint(1, 7)}-{rng.randint(10, 28)}", "Delta Air Lines Inc.",
                *rng.sample(["ATL", "MIA", "JFK", "SEA"], 2), "False", "False", 1200 + n % 60, f"{1205 + n % 50}.0",
                "5.0", "5.0", "1401.0", "0.0", f"{60 + n}.0", "120.0", "115.0", f"{300 + n}.0", 2022, 3, "DL", 100 + n,
                "7.0", 1410, "-9.0"] for n in range(300)]
    write_csv(folder / "flights" / "Combined_Flights_2022.csv", FLIGHTS, flights)
    write_csv(folder / "coffee" / "coffee_price.csv", "Date,Open,High,Low,Close,Volume,Currency".split(","),
              [[f"20{y:02}-01-{d:02}", 100 + y, 110.5 + y, 99.25, 105.0 + d, 1000 * d, "USD"]
               for y in range(5) for d in range(1, 29)])
    homes = [[1001254 + n, f'Cosy, "quiet" home {n}', 80014485718 + n, "unconfirmed", "Ann", "Brooklyn",
              f"Area {n % 7}", 40.6, -73.9, "United States", "US", "FALSE", "strict", "Private room", 2020,
              f"${100 + n} ", "$193 ", 10, n, "10/19/2021", 0.21, 4, 6, 286, "No parties.\nPlease, no smoking.", ""]
             for n in range(60)]
    write_csv(folder / "airbnb" / "Airbnb_Open_Data.csv", AIRBNB, homes + homes[:5])
    (folder / "yelp").mkdir()
    shops = [{"business_id": f"b{n}", "name": f"Shop {n}", "address": f"{n} Main St", "city": "Trenton", "state": "NJ",
              "postal_code": f"08{n:03}", "latitude": 40.1, "longitude": -74.5, "stars": 3.5, "review_count": n,
              "is_open": n % 2, "attributes": {"ByAppointmentOnly": "True"} if n % 3 else None,
              "categories": "Food, Bars", "hours": {"Monday": "8:0-18:30"}} for n in range(40)]
    write_lines(folder / "yelp" / "yelp_academic_dataset_business.json", shops)
    (folder / "agenda").mkdir()
    write_lines(folder / "agenda" / "agenda_descriptions_merged.jsonl", [
        {"event": f"On January {n}, 2022, Grace will attend Opera {n} from 7:00 PM to 9:00 PM at the Met."}
        for n in range(1, 29)])
    papers, authors = networkx.DiGraph(), networkx.Graph()
    for n in range(12):
        row = {"year": numpy.int64(2000 + n), "pages": n, "share": numpy.float32(0.5)}         # as in a pandas table
        papers.add_node(f"p{n}", title=f"Paper {n}", **row)
        authors.add_node(f"a{n}", name=f"Author {n}", organization="Aalto")
    papers.add_edges_from((f"p{n}", f"p{n // 2}") for n in range(1, 12))
    for n in reversed(range(1, 12)):
        shared = ["p3b"] * (n == 3)
        authors.add_edge(f"a{n}", f"a{n // 3}", weight=n, papers=[f"p{n}", *shared], n_citation=[3])
    papers.add_node("p3b", title="Paper 3", year=2003)     # a second paper of this title, unknown to the dictionaries
    papers.add_edge("p3b", "p1")
    (folder / "dblp").mkdir()
    titles, names = {f"Paper {n}": f"p{n}" for n in range(12)}, {f"Author {n}": f"a{n}" for n in range(12)}
    back = {v: k for k, v in titles.items()}
    titles["Paper twice"] = "p3"                                    # as in the release: the dictionaries do not agree
    pickles = {"paper_net": papers, "author_net": authors, "title2id_dict": titles, "id2title_dict": back,
               "author2id_dict": names, "id2author_dict": {v: k for k, v in names.items()}}
    for name, data in pickles.items():
        (folder / "dblp" / f"{name}.pkl").write_bytes(pickle.dumps(data))
    return folder


@pytest.fixture(scope="module")
def world(corpora, tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    import_toolqa.import_corpora(corpora, out)
    toolqa._open(out)
    return out


def test_the_tools_answer_on_the_release_s_columns(world, corpora):
    rows = list(csv.DictReader(open(corpora / "flights" / "Combined_Flights_2022.csv")))
    wanted = rows[7]
    table = toolqa.data_filter(toolqa.load_db("flights"), "IATA_Code_Marketing_Airline=DL, "
                               "Flight_Number_Marketing_Airline=107, "
                               f"Origin={wanted['Origin']}, FlightDate={wanted['FlightDate']}")
    assert len(table) == 1 and toolqa.get_value(table, "DepTime") == wanted["DepTime"]
    assert table[0]["AirTime"] == float(wanted["AirTime"])
    far = toolqa.data_filter(toolqa.load_db("flights"), "Distance>400")
    assert len(far) == sum(float(row["Distance"]) > 400 for row in rows)
    assert toolqa.get_value(toolqa.data_filter(toolqa.load_db("coffee"), "Date=2003-01-05"), "Close") == "110.0"
    home = toolqa.data_filter(toolqa.load_db("airbnb"), "id=1001257, price=$103")
    assert home[0]["NAME"] == 'Cosy, "quiet" home 3' and home[0]["host id"] == "80014485721"
    assert home[0]["house_rules"].count("\n") == 1
    assert len(toolqa.load_db("airbnb")) == 60                         # five rows were repeated
    shop = toolqa.data_filter(toolqa.load_db("yelp"), "postal_code=08007")
    assert len(shop) == 1 and shop[0]["postal_code"] == "08007"
    assert json.loads(shop[0]["hours"]) == {"Monday": "8:0-18:30"}
    papers, people = toolqa.load_graph("PaperNet"), toolqa.load_graph("AuthorNet")
    assert toolqa.check_neighbours(people, "Author 1") == ["Author 5", "Author 4", "Author 3", "Author 0"]
    assert toolqa.check_neighbours(papers, "Paper 2") == ["Paper 1", "Paper 4", "Paper 5"]     # cites, and is cited by
    assert toolqa.check_edges(people, "Author 3", "Author 1") == {
        "weight": 3, "papers": ["Paper 3", "Paper 3"], "n_citation": [3]}
    paper = toolqa.check_nodes(papers, "Paper 3")
    assert paper["year"] == 2003 and paper["share"] == 0.5
    with pytest.raises(ValueError, match="Paper twice"):
        toolqa.check_nodes(papers, "Paper twice")
    assert "Opera 17" in toolqa.retrieve_agenda("Grace January 17 Opera")


def test_what_was_cleaned_is_logged_with_its_reason(world):
    log = (world / "cleaning.log").read_text()
    assert "airbnb, a repeated row: 1001254" in log and "in all 5: airbnb" in log
    assert "dblp, a node of PaperNet that no name in title2id_dict leads to: 'p3b'\n" in log
    assert "dblp, an edge of PaperNet with such a node: 'p3b', 'p1'\n" in log
    assert "title2id_dict and id2title_dict do not agree: 'Paper twice' is 'p3', that is 'Paper 3'" in log


def test_an_import_that_was_stopped_resumes(corpora, world, tmp_path, monkeypatch):
    table, done = import_toolqa.import_table, []

    def stopped(db, group, *rest):
        if group == "yelp":
            raise KeyboardInterrupt
        done.append(group)
        return table(db, group, *rest)
    monkeypatch.setattr(import_toolqa, "import_table", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_toolqa.import_corpora(corpora, tmp_path)
    assert done == ["flights", "coffee", "airbnb"] and not (tmp_path / "world.sqlite").exists()
    monkeypatch.setattr(import_toolqa, "import_table",
                        lambda db, group, *rest: (done.append(group), table(db, group, *rest)))
    import_toolqa.import_corpora(corpora, tmp_path)
    assert done[3:] == ["yelp"]
    dump = lambda folder: sorted(line for line in sqlite3.connect(folder / "world.sqlite").iterdump()
                                 if "sqlite_stat" not in line)
    assert dump(tmp_path) == dump(world)
    assert sorted((tmp_path / "cleaning.log").read_text()) == sorted((world / "cleaning.log").read_text())


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))               # what reading it would do


@pytest.mark.parametrize("content, message", [
    (pickle.dumps(Evil()), "cannot be read safely"),
    (pickle.dumps({"a": random.Random}), "holds a random.Random"),
    (b"no pickle", "cannot be read safely"),
])
def test_a_pickle_that_is_anything_else_is_refused(tmp_path, content, message):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        plain_pickle.read_pickle(tmp_path / "x.pkl")
    assert "x.pkl" in str(error.value)


def test_questions_become_tasks(tmp_path):
    for folder in import_toolqa.SPLITS.values():
        (tmp_path / folder).mkdir()
        for group in import_toolqa.GROUPS:
            lines = [{"qid": "easy-1", "question": "Who is it? ", "answer": "A//B ", "type": "who"},
                     {"question": "How much?", "answer": 5, "type": "price"}]
            if group == "dblp":
                lines = [{"question": "How many pages is \"X cited \" Y\"?", "answer": 3},
                         {"question": "How many papers did A B write in the network?", "answer": 7}]
            write_lines(tmp_path / folder / f"{group}-{folder}.jsonl", lines)
    tasks = import_toolqa.read_questions(tmp_path, "train")
    assert len(tasks) == 12 and len({t["id"] for t in tasks}) == 12
    assert tasks[0]["answer"] == ["A", "B"] and tasks[1]["answer"] == "5"
    assert tasks[0]["question"] == "Who is it?" and tasks[0]["template"] == "flights: who"
    asked = {t["template"] for t in tasks if t["group"] == "dblp"}
    assert asked == {"dblp: pages", "dblp: number of papers written by A"}
    (tmp_path / "train" / "dblp-train.jsonl").write_text('{"question": "Why?", "answer": "so"}\n')
    with pytest.raises(ValueError, match="dblp-train.jsonl, line 1: the question has no type"):
        import_toolqa.read_questions(tmp_path, "train")
