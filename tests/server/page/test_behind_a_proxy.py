"""The page below a path of another server, which asks for a password of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from server.auth.api_keys import hash_key, new_key
from tests.reverse_proxy import ABSENT, nginx, nginx_path
from tests.server.listening import listening
from tests.server.page.browser import Visitor, finished, generate
from tests.server.pictured_model import write_pictured
from tests.server.service import Service

pytestmark = pytest.mark.skipif(nginx_path() is None, reason=ABSENT)


def test_everything_works_below_a_path_and_behind_a_password(
    tmp_path: Path, browser: Browser
) -> None:
    write_pictured(tmp_path / "models")
    key, file = new_key(), tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "alice"\nsha256 = "{hash_key(key)}"\n')
    passwords = tmp_path / "passwords"
    passwords.write_text("reader:{PLAIN}secret\n")
    location = (
        "location /masc/ {{ auth_basic here; auth_basic_user_file {}; proxy_buffering off; "
        "proxy_pass http://127.0.0.1:{}/; }}"
    )
    with (
        Service(tmp_path, api_keys_file=file) as service,
        listening(service) as port,
        nginx(location.format(passwords, port)) as proxy,
    ):
        visitor = Visitor(browser, f"http://127.0.0.1:{proxy}/masc")
        password = {"username": "reader", "password": "secret"}
        page = visitor.open(http_credentials=password)
        generate(page)
        expect(page.locator("#error")).to_contain_text("An API key is needed")
        visitor.expect_complaint("401")
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        finished(page)
        assert len(service.painter.requests) == 1
        page.goto(f"{visitor.url}/#codebook")
        expect(page.get_by_role("heading", name="The whole tree")).to_be_visible()
        page.goto(f"{visitor.url}/#status")
        expect(page.locator("#served")).to_contain_text("tiny (default)")
        assert all(
            f"127.0.0.1:{proxy}/masc/" in url for url in visitor.requests if "data:" not in url
        )
        visitor.close()
