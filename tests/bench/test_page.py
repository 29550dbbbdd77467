"""The page of the report: whole in itself, valid, and quiet in a real browser."""

import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from matplotlib.figure import Figure

from bench.report.files import as_csv_text, as_markdown_text
from bench.report.page import as_html, as_svg
from bench.report.sections import Drawing, Report, Section
from perfmodel.show.tables import Column, Table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VOID = {"meta", "link", "br", "img", "hr"}


def drawing(text="w3 <4096x4096>"):
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([1, 2, 3])
    axes.plot([1], [2], "o", gid="point-0")
    axes.set_xlabel("seconds")
    return Drawing(figure=figure, caption='A "figure"', tooltips={"point-0": text})


def report():
    table = Table(
        head=("before the table",),
        columns=[Column(key="what", heading="what", right=False), Column(key="t", heading="time")],
        rows=[{"what": "<script>alert(1)</script>", "t": 1.5}, {"what": "b", "t": None, "bad": 1}],
    )
    section = Section(
        key="one", title="One & only", prose=("x < y",), drawings=(drawing(), drawing()),
        tables=(table,),
    )  # fmt: skip
    return Report(title="Results of <a6000>", subtitle="2 & 3", command="x", sections=(section,))


class Elements(HTMLParser):
    """Start tags with their attributes; every end tag has to close the last open one."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page():
    return as_html(report())


def test_every_element_is_closed_and_every_text_is_escaped(page):
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    assert "script" not in {tag for tag, _ in elements.found}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<h1>Results of &lt;a6000&gt;</h1>" in page


def test_nothing_comes_from_elsewhere(page):
    elements = Elements()
    elements.feed(page)
    places = [
        a[key] for _, a in elements.found for key in ("src", "href", "xlink:href") if key in a
    ]
    assert places
    assert all(place.startswith(("#", "data:")) for place in places)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_points_have_tooltips_and_two_figures_share_no_clip_path():
    first, second = (as_svg(drawing(), salt=salt) for salt in ("one-0", "one-1"))
    assert '<g id="point-0"><title>w3 &lt;4096x4096&gt;</title>' in first
    assert ">seconds</text>" in first
    ids = [set(re.findall(r'<clipPath id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


def test_the_same_report_makes_the_same_page(page):
    assert as_html(report()) == page


def test_markdown_and_csv_say_the_same():
    markdown = as_markdown_text(report())
    assert "## One & only" in markdown
    assert "| b | - |" in markdown
    lines = as_csv_text(report()).splitlines()
    assert lines[0] == "section,table,row,column,value"
    assert "one,0,0,t,1.5" in lines


def browse(folder, html):
    """Requests and console lines of a browser that opens this page from a server on loopback."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            body = html.encode() if self.path == "/page" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        command.append(f"http://127.0.0.1:{server.server_port}/page")
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        server.shutdown()
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    return run.stdout, requests, console


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
class TestInABrowser:
    def test_the_page_opens_without_an_error_or_a_request(self, tmp_path, page):
        document, requests, console = browse(tmp_path, page)
        assert requests == ["/page"]
        assert console == []
        assert document.count("<svg") == 2

    def test_a_picture_from_elsewhere_would_be_seen(self, tmp_path, page):
        spoilt = page.replace("<h1>", '<img src="/spy.png"><h1>')
        _, requests, console = browse(tmp_path, spoilt)
        assert requests == ["/page"]  # the page's own policy forbids it
        assert len(console) == 1
        spoilt = re.sub(r"<meta http-equiv=[^>]+>", "", spoilt)
        _, requests, _ = browse(tmp_path, spoilt)
        assert "/spy.png" in requests
