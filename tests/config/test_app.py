"""The operator's product in the settings: colours that can be read, logos that are pictures and nothing else."""

from pathlib import Path

import pytest

from config.app import BadLogo, app_colors, check_logo, contrast_tenths, read_logo, text_on, ways_home
from config.checks import check_combinations
from config.errors import ConfigError
from config.settings import App, Settings

SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">{}</svg>'
GOOD = SVG.format(
    '<!-- a mark --><defs><linearGradient id="g"><stop offset="0" stop-color="#0b5cad"/></linearGradient></defs>'
    '<g transform="scale(2)"><path d="M0 0h4v4z" fill="url(#g)"/><use href="#g"/></g><title>Acme</title>'
)


def test_shapes_are_a_logo() -> None:
    assert check_logo(GOOD.encode()).media_type == "image/svg+xml"
    assert check_logo(b"\x89PNG\r\n\x1a\n...").media_type == "image/png"
    assert check_logo(b"\xff\xd8\xff\xe0...").media_type == "image/jpeg"
    assert check_logo(b"RIFF\0\0\0\0WEBPVP8 ").media_type == "image/webp"


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        '<a href="https://evil.test"><path d=""/></a>',
        '<path d="" onclick="alert(1)"/>',
        '<path d="" ONLOAD="alert(1)"/>',
        "<style>@import url(https://evil.test/a.css)</style>",
        '<path d="" style="fill: red"/>',
        '<path d="" fill="url(https://evil.test/a)"/>',
        '<use href="https://evil.test/a.svg#x"/>',
        '<use xlink:href="data:image/svg+xml,x"/>',
        '<image href="https://evil.test/a.png"/>',
        '<foreignObject><b xmlns="http://www.w3.org/1999/xhtml">x</b></foreignObject>',
        '<animate attributeName="href" to="javascript:alert(1)"/>',
        '<html:script xmlns:html="http://www.w3.org/1999/xhtml">alert(1)</html:script>',
        "<path",
    ],
)
def test_whatever_else_an_svg_can_do_is_refused(inside: str) -> None:
    with pytest.raises(BadLogo):
        check_logo(SVG.format(inside).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"GIF89a",
        b"<html></html>",
        b'<!DOCTYPE svg [<!ENTITY a "b">]>' + GOOD.encode(),
        b'<?xml-stylesheet href="https://evil.test/a.css"?>' + GOOD.encode(),
        b"\x89PNG\r\n\x1a\n" + b"x" * 300_000,
    ],
)
def test_what_is_no_picture_is_refused(body: bytes) -> None:
    with pytest.raises(BadLogo):
        check_logo(body)


def test_the_file_is_read_and_named_in_what_is_wrong(folder: Path) -> None:
    assert read_logo(App()) is None
    place = folder / "logo.svg"
    for write, said in ((None, "cannot be read"), ("<html/>", "no SVG")):
        if write is not None:
            place.write_text(write)
        with pytest.raises(ConfigError, match=said) as refused:
            read_logo(App(logo_file=str(place)))
        assert refused.value.key == "app.logo_file"
    place.write_text(GOOD)
    found = read_logo(App(logo_file=str(place)))
    assert found is not None
    assert found.body.decode() == GOOD


def test_contrast_is_wcags() -> None:
    assert contrast_tenths("#000000", "#ffffff") == 210
    assert contrast_tenths("#ffffff", "#ffffff") == 10
    # #767676 is the lightest grey that passes on white, by 4.54 to 1
    assert contrast_tenths("#767676", "#ffffff") == 45
    assert contrast_tenths("#777777", "#ffffff") == 44
    assert (text_on("#0b5cad"), text_on("#7ab8ff")) == ("#ffffff", "#0d1520")


@pytest.mark.parametrize(
    ("app", "key"),
    [
        (App(color="#ffdd00"), "app.color"),
        (App(dark_color="#0b2a5b"), "app.dark_color"),
        (App(url="app.example.com"), "app.url"),
        (App(url="javascript:alert(1)"), "app.url"),
        (App(support_url="help@example.com"), "app.support_url"),
        (App(terms_url="/terms"), "app.terms_url"),
        (App(privacy_url="ftp://example.com"), "app.privacy_url"),
    ],
)
def test_what_nobody_could_read_or_follow_is_refused(app: App, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_combinations(Settings(app=app), "proxy.toml")
    assert [problem.key for problem in refused.value.problems] == [key]


def test_good_settings_become_a_style_sheet_and_ways_home() -> None:
    app = App(url="https://app.test", color="#0b5cad", dark_color="#7ab8ff", support_url="mailto:help@app.test")
    check_combinations(Settings(app=app), "proxy.toml")
    light, dark = app_colors(app).splitlines()
    assert "light" in light
    assert "--accent: #0b5cad; --on-accent: #ffffff;" in light
    assert "dark" in dark
    assert "--accent: #7ab8ff; --on-accent: #0d1520;" in dark
    assert app_colors(App()) == ""
    assert ways_home(app) == {"appUrl": "https://app.test", "supportUrl": "mailto:help@app.test"}
    assert ways_home(App()) == {}
