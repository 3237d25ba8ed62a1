"""Prints the documentation of your tools as a hint section, from their signatures and docstrings.

    python -m agent --tools mine/tools.py --data mine/data
"""

from common import command_line

import sys
from pathlib import Path

from agent.hints import documentation
from agent.options import folder


def main():
    parser = command_line.Parser(__doc__)
    parser.add_argument("--tools", type=Path, required=True, metavar="FILE",
                        help="the module whose functions are the tools")
    parser.add_argument("--data", type=folder, metavar="DIR", help="the tools' data")
    args = parser.parse_args()
    print(documentation(args.tools, args.data))


if __name__ == "__main__":
    sys.argv[0] = "agent"                           # the name in --help and error messages
    command_line.run_stage(main)
