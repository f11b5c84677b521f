"""config.toml, in which a run keeps how it was started, its settings, and what it must remember of its data."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torchrnn.tools.runs.errors import ToolError
from torchrnn.tools.runs.job import Job, job_named
from torchrnn.tools.runs.settings import Settings


@dataclass
class Config:
    """What config.toml holds, and the files beside it that belong to it."""

    command: str
    files: list[str]
    job: str
    settings: Settings
    data: dict[str, Any]  # what Job.remember gave; its bytes are files beside config.toml
    versions: str = ""
    resumed: list[str] = field(default_factory=list)

    @property
    def job_class(self) -> type[Job]:
        """The class of the job."""
        return job_named(self.job)

    @property
    def kept(self) -> dict[str, bytes]:
        """The files that the job keeps, by their names."""
        return {name: value for name, value in self.data.items() if isinstance(value, bytes)}

    def to_bytes(self) -> bytes:
        """The text of config.toml."""
        # a file's name that is no UTF-8 reaches Python with surrogates; so it goes back
        return self.to_toml().encode("utf-8", "surrogateescape")

    def to_toml(self) -> str:
        """The text of config.toml."""
        lines = [f"# written by `torchrnn {self.job}`; torchrnn reads it, and nothing in it is run"]
        top = {name: getattr(self, name) for name in ("command", "files", "job", "versions", "resumed")}
        sums = {name: hashlib.sha256(value).hexdigest() for name, value in self.kept.items()}
        top |= {"kept": list(sums), "kept_sha256": list(sums.values())} if sums else {}
        plain = {name: value for name, value in self.data.items() if name not in sums}
        lines += [f"{name} = {_toml(value)}" for name, value in top.items()]
        for title, table in (("data", plain), ("settings", asdict(self.settings))):
            lines += ["", f"[{title}]", *(f"{_key(name)} = {_toml(value)}" for name, value in table.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, path: Path, *folders: Path) -> Config:
        """Read config.toml and the files that belong to it, which lie in one of `folders`; or say what is wrong."""
        try:
            content = _parse(path.read_bytes().decode("utf-8", "surrogateescape"))
            if "text_sha256" in content:
                raise ToolError(
                    f"{path} was written by an earlier version of torchrnn, which this one cannot read. Use that "
                    f"version, or start the run again with --overwrite."
                )
            settings = job_named(content["job"]).settings_class.typed(content.pop("settings"))
            kept = dict(zip(content.pop("kept", []), content.pop("kept_sha256", []), strict=True))
            config = cls(settings=settings, **content)
            if not all(isinstance(text, str) for text in (config.command, *config.files)):
                raise TypeError("command must be a string, and files a list of them")
            if not isinstance(config.versions, str) or not all(isinstance(text, str) for text in config.resumed):
                raise TypeError("versions must be a string, and resumed a list of them")
            if not all(isinstance(names, list) for names in (config.files, config.resumed)):
                raise TypeError("files and resumed must be lists")
            config.job_class.check(settings, config.data)
        except OSError as error:
            raise ToolError(f"{path} could not be read: {error.strerror}. Make it readable.") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ToolError) as error:
            if "earlier version" in str(error):
                raise
            raise ToolError(
                f"{path} is damaged or was changed by hand: {error}. Bring it back from a copy, or start the run again "
                f"with --overwrite."
            ) from error
        for name, sha256 in kept.items():
            config.data[name] = _kept(folders or (path.parent,), name, sha256)
        return config


def is_plain_name(name: object) -> bool:
    """Whether a name from config.toml is that of a file in the run folder itself."""
    return isinstance(name, str) and bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name))


def _kept(folders: Sequence[Path], name: str, sha256: str) -> bytes:
    for folder in folders:
        if is_plain_name(name) and (folder / name).is_file():
            data = (folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
    raise ToolError(
        f"{folders[-1] / str(name)} is not there, or not what config.toml says was written: it is damaged. Bring it "
        f"back from a copy, or start the run again with --overwrite."
    )


def _parse(toml: str) -> dict[str, Any]:
    """The tables of a TOML text as `to_toml` writes it: one `name = value` a line, the values spelled as in JSON.

    Python 3.10 has no TOML reader; this one asks nothing of the user's Python.
    """
    tables: dict[str, Any] = {}
    table = tables
    for line in toml.split("\n"):
        if line.startswith("["):
            table = tables.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            name, _, value = line.partition(" = ")
            table[_key(name)] = json.loads(value)
    return tables


def _key(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"{name!r} is no name for a value in config.toml: letters, digits, _ and - only")
    return name


def _toml(value: Any) -> str:
    """A string, number, truth value or list in TOML; JSON's spelling is TOML's, but for DEL."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
