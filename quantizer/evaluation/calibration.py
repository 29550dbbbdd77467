"""Calibration tokens from local files, by the named recipes of the papers.

profile           windows x tokens, and how they are drawn              used by
c4-100x512        documents of at least 512 tokens, one window of each  SqueezeLLM (Fisher)
c4-128x2048       the same with 2048                                    GPTQ, LLaMA tables
pile-128x512      documents joined, cut into windows                    AWQ
wikitext2-128x2048 random windows of the joined text                    GPTVQ

Text is `.txt` (blank lines part documents), `.jsonl` (the key `text`), either with `.gz`; tokens
are `.npy` (integers, one window per row, or one row to be cut) or flat little-endian `.u16`.
"""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from quantizer.errors import CheckpointError, UsageError

SEED = 0
MAX_TEXT_BYTES = 2**32
WIKITEXT_MARK = " @-@ "  # how WikiText writes a hyphen
_IDS = (".npy", ".u16")
_TEXT = (".txt", ".jsonl")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How many windows of how many tokens, and how they are drawn."""

    name: str
    windows: int
    tokens: int
    draw: Literal["documents", "joined", "cut"]


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(name="c4-100x512", windows=100, tokens=512, draw="documents"),
        Profile(name="c4-128x2048", windows=128, tokens=2048, draw="documents"),
        Profile(name="pile-128x512", windows=128, tokens=512, draw="cut"),
        Profile(name="wikitext2-128x2048", windows=128, tokens=2048, draw="joined"),
    )
}
DEFAULT_PROFILE = "c4-100x512"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where tokens came from; kept in the checkpoint to judge a later evaluation."""

    file: str  # name, without its folder
    folder: str  # name of the folder, without what is above
    sha256: str
    wikitext: bool
    profile: str = ""  # empty for tokens that are taken as they are


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Windows of token numbers, all of one length."""

    ids: Tensor  # (windows, tokens) int64
    source: Source

    @property
    def sha256(self) -> str:
        shape = str(tuple(self.ids.shape)).encode()
        return hashlib.sha256(shape + self.ids.numpy().tobytes()).hexdigest()


def load_calibration(
    path: Path, tokenizer_folder: Path, profile: str, *, longest: int, vocabulary: int
) -> Calibration:
    """Windows of a text or token file; windows longer than the model's context are shortened.

    Raises: UsageError for an unknown profile, CheckpointError for an unusable file.
    """
    if profile not in PROFILES:
        raise UsageError(f"no calibration profile {profile!r}; have: {', '.join(PROFILES)}")
    recipe = PROFILES[profile]
    tokens = min(recipe.tokens, longest)
    if is_ids(path):
        ids = read_ids(path, vocabulary)
        windows = ids if ids.dim() == 2 else _cut(ids, tokens)
        windows = windows[: recipe.windows, :longest]
        if len(windows) == 0:
            raise CheckpointError(f"{path}: holds fewer than one window of {tokens} tokens")
        return Calibration(ids=windows.contiguous(), source=source_of(path))
    documents = read_documents(path)
    encode = load_tokenizer(tokenizer_folder)
    windows = _draw(recipe, documents, encode, tokens, path)
    _check_vocabulary(path, windows, vocabulary)
    return Calibration(ids=windows, source=source_of(path, profile))


def is_ids(path: Path) -> bool:
    """Whether a file holds tokens, by its suffix. Raises: UsageError for an unknown suffix."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix in _IDS and path.suffix != ".gz":
        return True
    if suffix in _TEXT:
        return False
    known = ", ".join((*_TEXT, *_IDS))
    raise UsageError(f"{path}: expected a file of text or tokens: {known}, text also with .gz")


def read_ids(path: Path, vocabulary: int) -> Tensor:
    """Token numbers of a .npy or .u16 file, one or two dimensions.

    Raises: CheckpointError.
    """
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            array = np.fromfile(path, dtype="<u2")
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read as token numbers: {error}") from None
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.size == 0:
        raise CheckpointError(f"{path}: {array.dtype} of shape {array.shape}, expected tokens")
    ids = torch.from_numpy(array.astype(np.int64))
    _check_vocabulary(path, ids, vocabulary)
    return ids


def read_text(path: Path) -> str:
    """The text of a .txt or .jsonl file, documents joined with blank lines.

    Raises: CheckpointError.
    """
    return "\n\n".join(read_documents(path)) if ".jsonl" in path.suffixes else _raw_text(path)


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, the empty ones left out.

    Raises: CheckpointError.
    """
    text = _raw_text(path)
    if ".jsonl" not in path.suffixes:
        return [part for part in text.split("\n\n") if part.strip()] or [text]
    documents = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            documents.append(msgspec.json.decode(line, type=dict[str, Any])["text"])
        except (msgspec.DecodeError, KeyError):
            raise CheckpointError(f"{path}:{number}: expected an object with `text`") from None
    return [text for text in documents if isinstance(text, str) and text.strip()]


def load_tokenizer(folder: Path) -> Any:
    """text -> token numbers, by tokenizer.json; special tokens as its post-processor says.

    Raises: CheckpointError.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: cannot be read: {error}") from None

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    return encode


def source_of(path: Path, profile: str = "") -> Source:
    """Raises: CheckpointError if the file cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    text = "" if is_ids(path) else _raw_text(path)
    return Source(
        file=path.name,
        folder=path.resolve().parent.name,
        sha256=hashlib.sha256(content).hexdigest(),
        wikitext=WIKITEXT_MARK in text,
        profile=profile,
    )


def in_domain(calibration: Source, evaluation: Source) -> str | None:
    """Why perplexity on the evaluation text may flatter, None if there is no sign of it."""
    if calibration.sha256 == evaluation.sha256:
        return f"{evaluation.file} is the calibration file itself"
    if evaluation.wikitext and (calibration.wikitext or calibration.profile.startswith("wiki")):
        return "calibration and evaluation are both WikiText"
    if calibration.folder == evaluation.folder:
        return f"{calibration.file} and {evaluation.file} come from one folder"
    return None


def _raw_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise CheckpointError(f"{path}: is larger than {MAX_TEXT_BYTES} bytes")
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                content = stream.read(MAX_TEXT_BYTES + 1)
        else:
            content = path.read_bytes()
        if len(content) > MAX_TEXT_BYTES:
            raise CheckpointError(f"{path}: unpacks to more than {MAX_TEXT_BYTES} bytes")
        return content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as text: {error}") from None


def _draw(
    recipe: Profile, documents: Sequence[str], encode: Any, tokens: int, path: Path
) -> Tensor:
    """Windows of a text; a file without documents that are long enough is joined."""
    generator = np.random.default_rng(SEED)
    if recipe.draw == "documents":
        windows = _of_documents(documents, encode, recipe.windows, tokens, generator)
        if len(windows) == recipe.windows:
            return torch.tensor(windows)
    ids = torch.tensor(encode("\n\n".join(documents)))
    if len(ids) < tokens:
        raise CheckpointError(f"{path}: has {len(ids)} tokens, expected at least {tokens}")
    if recipe.draw == "cut":
        return _cut(ids, tokens)[: recipe.windows].contiguous()
    starts = generator.integers(0, len(ids) - tokens + 1, size=recipe.windows)
    return torch.stack([ids[start : start + tokens] for start in starts])


def _of_documents(
    documents: Sequence[str], encode: Any, count: int, tokens: int, generator: Any
) -> list[list[int]]:
    windows: list[list[int]] = []
    for index in generator.permutation(len(documents)):
        if len(windows) == count:
            break
        if len(documents[index]) < tokens:  # a token has at least one character
            continue
        ids = encode(documents[index])
        if len(ids) >= tokens:
            start = int(generator.integers(0, len(ids) - tokens + 1))
            windows.append(ids[start : start + tokens])
    return windows


def _cut(ids: Tensor, tokens: int) -> Tensor:
    count = len(ids) // tokens
    return ids[: count * tokens].reshape(count, tokens)


def _check_vocabulary(path: Path, ids: Tensor, vocabulary: int) -> None:
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= vocabulary:
        raise CheckpointError(
            f"{path}: has token {most if most >= vocabulary else least}, expected 0.."
            f"{vocabulary - 1}; made for another tokenizer?"
        )
