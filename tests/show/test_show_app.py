"""Who may ask for what, and what is answered."""

import base64
import json
import re
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import change_config, run_command
from PIL import Image
from shown_runs import PORT, make_run, row
from starlette.testclient import TestClient

import feedax
from feedax.cli.show import open_run
from feedax.report.run_folder import RunFolder
from feedax.show import app as app_module
from feedax.show.app import make_app
from feedax.show.runs import Runs

OURS = f"http://127.0.0.1:{PORT}"


@pytest.mark.parametrize("address", ["/", "/api/runs", "/runs/a/report", "/nothing"])
def test_every_answer_says_what_is_forbidden(client, address):
    headers = client.get(address).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    policy = headers["content-security-policy"].split("; ")
    assert policy == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "connect-src 'self'",
        "img-src 'self' data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"LOCALHOST:{PORT}"])
def test_this_server_is_asked_by_its_name(client, host):
    assert client.get("/api/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1:{PORT}.evil"],
)
@pytest.mark.parametrize("address", ["/", "/api/runs", "/runs/a/report"])
def test_a_name_that_leads_here_is_refused(client, folder, host, address):
    (make_run(folder / "a").path / "report.html").write_text("secret")
    response = client.get(address, headers={"Host": host})
    assert response.status_code == 403
    assert response.text == f"The host must be one of 127.0.0.1:{PORT}, localhost:{PORT}.\n"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": OURS}, 200),
        ({"Origin": OURS, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://127.0.0.1:{PORT + 1}"}, 403),
        ({"Origin": f"http://localhost:{PORT}"}, 403),
        ({"Origin": OURS, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({}, 403),
    ],
)
def test_a_picture_comes_from_the_page_itself(client, folder, headers, code):
    make_run(folder / "a")
    del client.headers["origin"]
    response = client.post("/api/runs/a", content=picture(folder), headers=headers)
    assert response.status_code == code
    assert ("must" in response.text) == (code == 403)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_there_is_no_other_way_in(client, folder, method):
    make_run(folder / "a")
    for address in ("/", "/api/runs", "/api/runs/a", "/runs/a/report"):
        assert client.request(method, address).status_code == 405


def picture(folder: Path) -> bytes:
    path = folder.parent / "seven.png"
    image = np.full((60, 50), 240, np.uint8)
    image[10:16, 10:40] = 30
    image[10:52, 30:36] = 30
    Image.fromarray(image).save(path)
    return path.read_bytes()


def test_a_picture_is_answered_as_feedax_predict_does(client, folder, capfd):
    run = make_run(folder / "a")
    answer = client.post("/api/runs/a", content=picture(folder)).json()
    trained = open_run(run.path)
    prepared = trained.prepare(folder.parent / "seven.png")
    expected = np.exp(feedax.predict(trained.params, prepared.pixels.ravel().astype(np.float32)))
    np.testing.assert_array_equal(np.float32(answer["probabilities"]), expected)
    seen = np.frombuffer(base64.b64decode(answer["pixels"]), np.uint8).reshape(answer["shape"])
    np.testing.assert_array_equal(seen, prepared.pixels)
    assert answer["names"] == [f"{i}" for i in range(10)]

    done = run_command(capfd, ["predict", str(run.path), str(folder.parent / "seven.png")])
    first = int(np.argmax(answer["probabilities"]))
    assert f": {first} with probability {answer['probabilities'][first]:.4f}, then " in done.stdout
    assert f"seven.png is {'; '.join(answer['notes'])}\n" in done.stderr


def test_a_run_that_trains_on_is_opened_again(client, folder):
    run = make_run(folder / "a")
    before = client.post("/api/runs/a", content=picture(folder)).json()
    run.save_params(feedax.init_mlp((784, 10), jax.random.key(1)))
    after = client.post("/api/runs/a", content=picture(folder)).json()
    assert before["probabilities"] != after["probabilities"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the picture must be a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM, and it is none of "
         "them; convert it"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "the picture must be a PNG, JPEG, WebP, BMP, GIF, TIFF or "
         "PPM, and it is none of them; convert it"),
        ("huge", "the picture must have at most 3,000 pixels, and it has more; make it smaller"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_said_in_a_sentence(client, folder, monkeypatch, content, sentence):
    make_run(folder / "a")
    if content == "huge":
        content = picture(folder).ljust(3000 * 8)
        Image.new("L", (80, 80)).save(folder.parent / "huge.png")
        content = (folder.parent / "huge.png").read_bytes()
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    response = client.post("/api/runs/a", content=content)
    assert (response.status_code, response.json()) == (200, {"error": sentence})


def test_a_large_body_is_refused_before_it_is_all_there(client, folder, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_BYTES", 1000)
    make_run(folder / "a")
    response = client.post("/api/runs/a", content=b"x" * 1001)
    assert response.status_code == 413
    assert response.json() == {"error": "a picture must have at most 1,000 bytes; make it smaller"}
    sent = []

    def pieces():
        for _ in range(1000):
            sent.append(100)
            yield b"x" * 100

    assert client.post("/api/runs/a", content=pieces()).status_code == 413


def test_a_run_without_pictures_or_parameters_says_so(client, folder):
    run = make_run(folder / "a")
    change_config(run.path, image_shape=None)
    sentence = client.post("/api/runs/a", content=picture(folder)).json()["error"]
    assert sentence.startswith("the run must be trained on the plain pixels of images, and the ")
    run.params_path.unlink()
    sentence = client.post("/api/runs/a", content=picture(folder)).json()["error"]
    assert sentence == (
        "show: a must have its parameters in params.safetensors, and it has none yet; wait for the "
        "end of its first epoch"
    )


def test_parameters_of_elsewhere_are_not_read(client, folder):
    elsewhere = make_run(folder.parent / "elsewhere")
    run = make_run(folder / "a")
    run.params_path.unlink()
    run.params_path.symlink_to(elsewhere.params_path)
    assert "error" in client.post("/api/runs/a", content=picture(folder)).json()


def test_code_that_a_run_names_is_never_run(client, folder, ask, monkeypatch):
    ran = folder.parent / "ran"
    (folder.parent / "evil.py").write_text(f"open({str(ran)!r}, 'w')\ndef data(train): ...\n")
    monkeypatch.syspath_prepend(folder.parent)
    run = make_run(folder / "a", epochs=1, dataset="evil:data")
    change_config(run.path, arguments=["--dataset", "evil:data", "--epochs", "3"])
    assert ask(("a", "", 0))["ticked"]["a"]["config"]["dataset"] == "evil:data"
    assert "probabilities" in client.post("/api/runs/a", content=picture(folder)).json()
    assert not ran.exists()


def test_a_report_is_a_page_of_nobody(client, folder):
    run = make_run(folder / "a")
    assert client.get("/runs/a/report").status_code == 404
    (run.path / "report.html").write_text("<script>fetch('/api/runs')</script>")
    response = client.get("/runs/a/report")
    assert response.text == "<script>fetch('/api/runs')</script>"
    policy = response.headers.get_list("content-security-policy")
    assert len(policy) == 1
    assert "sandbox allow-scripts" in policy[0]
    assert "allow-same-origin" not in policy[0]
    assert "connect-src" not in policy[0]
    (run.path / "report.html").unlink()
    (run.path / "report.html").symlink_to(folder.parent / "secret.html")
    (folder.parent / "secret.html").write_text("secret")
    response = client.get("/runs/a/report")
    assert response.status_code == 404
    assert response.json()["error"] == (
        "show: a must have a report.html to be read, and it cannot be (it is a link); make it with "
        "feedax report"
    )


OUT = ["..", ".", "../elsewhere", "..%2Felsewhere", "%2e%2e", "..%5celsewhere", "a%2F..%2F..",
       "/etc", "%2Fetc", "a%00", "", "b"]  # fmt: skip


@pytest.mark.parametrize("name", OUT)
def test_no_name_leads_out_of_the_folder(client, folder, ask, name):
    for run in (folder / "a", folder.parent / "elsewhere", folder.parent):
        if run != folder.parent:
            make_run(run)
        (run / "report.html").write_text("secret")
    plain = name.replace("%2F", "/").replace("%2e", ".").replace("%5c", "\\").replace("%00", "\0")
    assert ask((plain, "", 0))["ticked"] == {}
    for send in (lambda: client.get(f"/runs/{name}/report"),
                 lambda: client.post(f"/api/runs/{name}", content=b"x")):  # fmt: skip
        response = send()
        assert response.status_code in (404, 405) or "error" in response.json()
        assert "secret" not in response.text


@pytest.mark.parametrize(
    "ticked",
    ["", "[", "1", "[1]", "{}", '"abc"', "[[1, 2, 3]]", '[["a", "", -1]]', '[["a", "", 1.5]]',
     '[["a", "", true]]', json.dumps([["a", "", 0]] * 9), "[" * 20_000, '[["a", "", 1e999]]'],
)  # fmt: skip
def test_nonsense_is_refused(client, folder, ticked):
    make_run(folder / "a", epochs=1)
    response = client.get("/api/runs", params={"ticked": ticked})
    assert response.status_code == 400


def test_an_offset_beyond_the_file_begins_anew(folder, ask):
    make_run(folder / "a", epochs=1)
    version = ask(("a", "", 0))["ticked"]["a"]["version"]
    assert ask(("a", version, 2**62))["ticked"]["a"]["rows"] == [row(0)]


def test_text_of_a_run_cannot_become_a_script(client, folder, ask):
    evil = "</script><script>alert(1)</script>"
    make_run(folder / "<b>a", epochs=1, dataset=evil)
    content = client.get("/").text
    assert "alert(1)" not in content
    assert ask()["runs"][0]["dataset"] == evil  # as text, which the page sets as text
    other = TestClient(make_app(Runs(folder, only="<b>a"), open_run, PORT), base_url=OURS)
    content = other.get("/").text
    assert "<b>a" not in content
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', content)[1]
    assert json.loads(data)["only"] == "<b>a"


def test_of_one_run_the_others_are_not_shown(folder):
    for name in "ab":
        make_run(folder / name, epochs=1)
    one = TestClient(make_app(Runs(folder, only="b"), open_run, PORT), base_url=OURS)
    response = one.get("/api/runs", params={"ticked": '[["a", "", 0], ["b", "", 0]]'}).json()
    assert [run["name"] for run in response["runs"]] == [*response["ticked"]] == ["b"]


def test_many_ask_at_once_and_no_row_counts_twice(client, folder, ask):
    run = make_run(folder / "a")
    answers = []

    def ask_often():
        answers.extend(ask(("a", "", 0)) for _ in range(25))

    threads = [threading.Thread(target=ask_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for epoch in range(100):
        run.append_row(row(epoch))
    for thread in threads:
        thread.join()
    assert len(answers) == 100
    assert ask()["runs"][0]["done"] == 100
    assert ask()["runs"][0]["seconds"] == 50.0


def test_the_page_needs_no_jax(folder):
    from helpers import run_script

    make_run(folder / "a", epochs=1)
    done = run_script(
        folder.parent,
        f"""
        import sys
        from pathlib import Path
        import feedax.cli.show
        from feedax.show.runs import Runs
        runs = Runs(Path({str(folder)!r}))
        print(runs.listing()["runs"][0]["done"], len(runs.rows("a", "", 0)["rows"]))
        print({{"jax", "torch", "scipy", "matplotlib", "numpy"}} & set(sys.modules))
        """,
    )
    assert (done.stdout, done.stderr) == ("1 1\nset()\n", "")
    assert RunFolder.open(folder / "a").config["dataset"] == "mnist"
