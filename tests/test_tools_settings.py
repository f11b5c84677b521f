"""Settings and config.toml: what is refused, and that what is written is read again."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrnn.tools.runs.config import Config
from torchrnn.tools.runs.errors import ToolError, UsageError
from torchrnn.tools.text.settings import TextSettings

WRONG = [
    ("cell", "lstn", "one of lstm, gru, rnn"),
    ("device", "tpu", "one of auto, cpu, cuda, mps"),
    ("hidden_size", 0, "at least 1"),
    ("hidden_size", 2**31, "at least 1 and below 2^31"),
    ("embedding_size", -1, "at least 1"),
    ("num_layers", 0, "at least 1"),
    ("batch_size", 0, "at least 1"),
    ("sequence_length", 0, "at least 1"),
    ("validate_every", 0, "at least 1"),
    ("epochs", 0, "at least 1"),
    ("threads", 0, "at least 1"),
    ("steps", -1, "at least 0"),
    ("patience", -1, "at least 0"),
    ("devices", 0, "at least 1"),
    ("devices", 33, "at most --batch-size, 32"),
    ("lr_decay", "linear", "one of none, cosine"),
    ("clip", float("inf"), "a number from 0"),
    ("lr", float("nan"), "a number above 0"),
    ("lr", 0.0, "a number above 0 and at most 1000"),
    ("lr", 1e38, "a number above 0 and at most 1000"),
    ("dropout", 1.0, "from 0 to below 1"),
    ("validation", 1.0, "a fraction between 0 and 1"),
    ("seed", -1, "from 0 to below"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_setting_out_of_range_is_named(name, value, expected):
    with pytest.raises(UsageError) as error:
        TextSettings(**{name: value})
    message = str(error.value)
    assert message.startswith(f"--{name.replace('_', '-')} must be {expected}")
    assert f"got {value}" in message


@given(st.text(min_size=1).map(lambda text: "".join(sorted(set(text)))), st.lists(st.text()), st.floats(1e-9, 1e3))
def test_config_comes_back_and_is_toml(tmp_path_factory, characters, files, lr):
    data = {"sha256": "00", "characters": characters}
    config = Config("torchrnn text", files, "text", TextSettings(lr=lr), data, "torch", ["again"])
    path = tmp_path_factory.mktemp("run") / "config.toml"
    path.write_bytes(config.to_bytes())
    assert Config.read(path) == config
    if sys.version_info >= (3, 11):
        import tomllib

        content = tomllib.loads(config.to_toml())
        assert content.pop("settings")["lr"] == lr
        assert content["data"]["characters"] == characters


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hidden_size = 256", "hidden_size = 2", None),
        ("hidden_size = 256", "hidden_size = '2'", "Expecting value"),
        ("hidden_size = 256", 'hidden_size = "2"', "hidden_size must be int"),
        ("hidden_size = 256", "hidden_size = 0", "--hidden-size must be"),
        ("hidden_size = 256", "hiden_size = 256", "hiden_size"),
        ("[settings]", "[setting]", "settings"),
        ("[data]", "[date]", "date"),
        ('job = "text"', 'job = "txt"', "job must be one of text, classify, forecast, got 'txt'"),
        ('job = "text"', "job = []", "unhashable"),
        ('characters = "ab"', "", "characters"),
        ('characters = "ab"', 'characters = ""', "characters must be different characters"),
        ('characters = "ab"', 'characters = "ba"', "characters must be different characters in the order"),
        ('sha256 = "00"', "sha256 = 0", "sha256 must be a string"),
    ],
)
def test_a_damaged_config_is_explained(tmp_path, old, new, message):
    path = tmp_path / "config.toml"
    config = Config("torchrnn text", [], "text", TextSettings(), {"sha256": "00", "characters": "ab"})
    assert old in config.to_toml()
    path.write_text(config.to_toml().replace(old, new))
    if message is None:
        assert Config.read(path).settings.hidden_size == 2
        return
    with pytest.raises(ToolError, match=r"config.toml is damaged or was changed by hand") as error:
        Config.read(path)
    assert message in str(error.value)


def test_a_config_of_an_earlier_version_is_told_apart(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('command = "torchrnn train"\nfiles = []\ntext_sha256 = "00"\n\n[settings]\ncell = "lstm"\n')
    with pytest.raises(ToolError, match=r"was written by an earlier version of torchrnn.*--overwrite"):
        Config.read(path)


def test_bytes_are_files_beside_the_config_and_their_damage_is_noticed(tmp_path):
    path, other = tmp_path / "config.toml", tmp_path / "other"
    config = Config("torchrnn text", [], "text", TextSettings(), {"sha256": "00", "characters": "a", "b.json": b"[]"})
    path.write_bytes(config.to_bytes())
    other.mkdir()
    (tmp_path / "b.json").write_bytes(b"an earlier run's")
    with pytest.raises(ToolError, match=r"b.json is not there, or not what config.toml says"):
        Config.read(path, tmp_path, other)
    (other / "b.json").write_bytes(b"[]")
    assert Config.read(path, tmp_path, other) == config
    path.write_text(path.read_text().replace('"b.json"', '"../b.json"'))
    with pytest.raises(ToolError, match="is not there"):  # names lead to nowhere else
        Config.read(path, other, tmp_path / "other")


def test_a_file_name_that_is_no_utf8(tmp_path):
    config = Config("torchrnn text", ["caf\udce9.txt"], "text", TextSettings(tokens="bytes"), {"sha256": "00"})
    (tmp_path / "config.toml").write_bytes(config.to_bytes())
    assert Config.read(tmp_path / "config.toml") == config
