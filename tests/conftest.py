"""Makes our modules importable, and turns a skip for a reason that is not listed here into a failure."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS / "recordings")]

MAY_SKIP = (                                             # how the reasons begin
    "float32 weights are packed on x86 only",
    "no Chromium here",
    "no Landlock or no seccomp here",
    "no headers of the kernel here",
    "no user namespaces here",
    "this CPU does not multiply bfloat16 natively",
    "this system does not keep the code from",
    "this system does not list its memory maps",
)


def checked(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(MAY_SKIP):
            report.outcome = "failed"
            report.longrepr = f"skipped for a reason that tests/conftest.py does not list: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return checked((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):               # a whole file can be skipped, too
    return checked((yield))
