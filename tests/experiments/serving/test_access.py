"""The key of a server: read from a file or the environment, never shown, needed beyond loopback."""

import pytest

from textgen_experiments.serving.access import SERVE_KEY, is_loopback, serving_key

SECRET = "0123456789abcdef0123"


@pytest.fixture(autouse=True)
def without_key(monkeypatch):
    monkeypatch.delenv(SERVE_KEY, raising=False)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    return path


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(host):
    assert is_loopback(host)
    assert serving_key(host, None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_others_need_a_key(host, key_file, monkeypatch):
    with pytest.raises(ValueError, match=f"host must be a loopback address .* got {host}: give"):
        serving_key(host, None)
    assert serving_key(host, key_file) == SECRET
    monkeypatch.setenv(SERVE_KEY, SECRET)
    assert serving_key(host, None) == SECRET


def test_two_keys_are_one_too_many(key_file, monkeypatch):
    monkeypatch.setenv(SERVE_KEY, SECRET)
    with pytest.raises(ValueError, match=f"api_key_file must be left out where {SERVE_KEY} is set"):
        serving_key("127.0.0.1", key_file)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"two words of a key", "ä".encode() * 20, b"\xff" * 20]
)
def test_a_key_that_is_none_is_refused_and_not_shown(content, key_file):
    key_file.write_bytes(content)
    with pytest.raises(
        ValueError, match="must be one word of at least 16 ASCII characters"
    ) as caught:
        serving_key("127.0.0.1", key_file)
    assert not content or content.decode(errors="replace") not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"api_key_file must be a readable file, got .*: No such"):
        serving_key("127.0.0.1", tmp_path / "none")
