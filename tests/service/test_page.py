"""The page to look at: what it shows, whom it lets in, and how it lays out in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ranking.service.app import create_app, make_engine
from ranking.service.settings import KEY_VARIABLE
from tests.service.live import TestClient, live, settings_of
from tests.service.workspaces import NOW, FixedClock, Project

KEY = "s3cret:with:colons"


@pytest.fixture(scope="module")
def client(project: Project) -> Iterator[TestClient]:
    own = settings_of(project, page=True)
    with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as found:
        yield found


def test_it_is_off_unless_asked_for(project: Project) -> None:
    own = settings_of(project)
    with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as closed:
        assert closed.get("/").status_code == 404


def test_it_shows_what_the_service_answers(client: TestClient) -> None:
    page = client.get("/", params={"user": "u004", "slots": 5}).text
    answer = client.post("/rank?explain=true", json={"user_id": "u004", "slots": 5}).json()
    assert answer["prior"] is not None
    with_priors, without = page.split('id="slate2"')
    shown = re.findall(r'<b>([^<]+)<small>.*?class="p">([\d.]+) %', with_priors.split('id="slate1"')[1], re.DOTALL)
    assert shown == [(slot["ad_id"], f"{100 * slot['score']:.2f}") for slot in answer["slots"]]
    # advertisers by name, their ids beside it: in the prior, in the history and with each ad
    first = answer["slots"][0]["advertiser_id"]
    named = f'name of {first} <span class="id">{first}</span>'
    assert f"<small>{named}" in with_priors
    assert f"<small>{named}" in without or first not in without
    assert len(re.findall(r'<th scope="row">name of a\d\d <span class="id">a\d\d</span>', page)) > 10
    largest = next(iter(answer["slots"][0]["contributions"]["features"].items()))
    assert largest[0] in page
    assert f"{largest[1]:+.2f}" in page
    assert "prior_llm_" in with_priors
    assert "prior_llm_" not in without
    assert "ranker_baseline_v1" in without
    assert without.count("<details") == 5
    profile = re.findall(r"<dt>(.+?)</dt><dd>(.+?)</dd>", page)
    assert profile
    shares = [float(one) for one in re.findall(r"aria-hidden=\"true\"></span></th><td>([\d.]+)</td>", with_priors)]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.1


def test_looking_is_neither_counted_nor_logged(project: Project, tmp_path: Path) -> None:
    own = settings_of(project, page=True, exposures=tmp_path / "exposures")
    with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as logged:
        assert logged.get("/", params={"user": "u004"}).status_code == 200
        metrics = logged.get("/metrics").text
    assert 'advprior_requests_total{path="/",status="200"} 1.0' in metrics
    assert "advprior_arm_requests_total{" not in metrics
    assert not [file for file in (tmp_path / "exposures").rglob("*") if file.is_file() and file.stat().st_size]


def test_whatever_is_asked_for_is_escaped(client: TestClient) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    response = client.get("/", params={"user": evil})
    assert response.status_code == 200
    assert "<script" not in response.text
    assert "<img" not in response.text
    assert html.escape(evil, quote=False) in response.text.replace("&#34;", '"')
    assert "The online store has no row of this user" in response.text
    assert "prior_missing" in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["cache-control"] == "no-store"
    for odd in ("\x00", "\u202e", "ü" * 1024, "%00"):
        assert client.get("/", params={"user": odd}).status_code == 200
    assert client.get("/", params={"user": "u" * 1025}).status_code == 422
    assert client.get("/", params={"user": "u004", "slots": 0}).status_code == 422


def test_it_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/", params={"user": "u004"}).text
    assert not re.findall(r"<(?:script|link|img|iframe)\b", page)
    assert not re.findall(r"https?:|url\(|@import", page)
    assert "tabindex" not in page  # links, fields and <details> take the keyboard by themselves
    empty = client.get("/").text
    assert 'href="/?user=u000"' in empty
    assert "<details" not in empty
    assert "/" not in client.get("/openapi.json").json()["paths"]


def test_the_key_is_asked_for_as_rank_asks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    own = settings_of(project, page=True, api_key=True)
    with TestClient(create_app(own, make_engine(own, FixedClock(NOW)))) as guarded:
        refused = guarded.get("/", params={"user": "u004"})
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert "u004" not in refused.text
        assert guarded.get("/", headers={"x-api-key": KEY}).status_code == 200
        assert guarded.get("/", auth=("anyone", KEY)).status_code == 200
        assert guarded.get("/", auth=("anyone", KEY[:-1])).status_code == 401
        for broken in ("Basic", "Basic ???", "Basic /w==", f"Bearer {KEY}"):
            assert guarded.get("/", headers={"authorization": broken}).status_code == 401


# -- in a browser --------------------------------------------------------------------------------------------------

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(_BROWSER is None, reason="no chromium: apt-get install chromium")
_PROBE = """<!doctype html><meta charset="utf-8">
<iframe id="f" style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe><pre id="out"></pre><script>
onload = () => {{
  const d = document.getElementById("f").contentDocument, at = s => d.querySelector(s).getBoundingClientRect();
  const small = [...d.querySelectorAll("summary, button, input")].filter(e => e.getBoundingClientRect().height < 24);
  document.getElementById("out").textContent = JSON.stringify({{
    wide: d.documentElement.scrollWidth, beside: at(".with").top === at(".without").top, small: small.length,
    reached: [...d.querySelectorAll("a, input, button, summary")].every(
      e => {{ e.focus(); return d.activeElement === e; }}),
  }});
}};
</script>"""


def _chromium(tmp_path: Path, *arguments: str) -> str:
    assert _BROWSER is not None
    own = [
        f"--user-data-dir={tmp_path / 'browser'}",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
    ]
    done = subprocess.run([_BROWSER, *own, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@in_browser
@pytest.mark.parametrize(("width", "beside"), [(390, False), (1200, True)])
def test_it_fits_a_phone_and_a_desk(client: TestClient, tmp_path: Path, width: int, beside: bool) -> None:
    page = client.get("/", params={"user": "u004"}).text
    probe = tmp_path / "probe.html"
    probe.write_text(_PROBE.format(width=width, page=html.escape(page)))
    dom = _chromium(tmp_path, f"--window-size={width + 40},1000", "--dump-dom", probe.as_uri())
    found = json.loads(html.unescape(dom.split('<pre id="out">')[1].split("</pre>")[0]))
    assert found == {"wide": width, "beside": beside, "small": 0, "reached": True}


@in_browser
def test_a_browser_draws_the_running_service(project: Project, tmp_path: Path) -> None:
    from matplotlib.image import imread

    with live(project, page=True) as service:
        address = f"http://127.0.0.1:{service.port}/?user=u004"
        _chromium(tmp_path, "--window-size=1200,1500", f"--screenshot={tmp_path / 'page.png'}", address)
    picture = imread(tmp_path / "page.png")
    assert picture.shape[:2] == (1500, 1200)
    assert len(np.unique((picture[::4, ::4, :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 50


def test_a_view_reads_the_store_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both slates and the history shown beside them are of the same rows, whatever is materialized meanwhile."""
    reader = client.app.state.engine.resources.reader  # type: ignore[attr-defined]
    read, asked = reader.read_user, []
    monkeypatch.setattr(reader, "read_user", lambda user: asked.append(user) or read(user))
    assert client.get("/", params={"user": "u004"}).status_code == 200
    assert asked == ["u004"]
    assert client.get("/").status_code == 200  # no user, nothing to read
    assert asked == ["u004"]
