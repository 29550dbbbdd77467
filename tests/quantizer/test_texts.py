"""Calibration and evaluation texts: what is drawn from a file, what is refused, what is scored."""

import gzip
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantizer.errors import CheckpointError, UsageError
from quantizer.evaluation.calibration import (
    PROFILES,
    in_domain,
    load_calibration,
    read_documents,
    read_text,
    source_of,
)
from quantizer.evaluation.evaluate import EvaluationText, Protocol, load_evaluation, perplexity

WORDS = [f"w{index}" for index in range(50)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One token per word, and <s> first as LLaMA's tokenizer does it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    return folder


def words(count: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + index) % 50] for index in range(count))


def load(path, folder, profile="c4-100x512", longest=16):
    return load_calibration(path, folder, profile, longest=longest, vocabulary=52)


def test_profiles_are_those_of_the_papers():
    sizes = {profile.name: (profile.windows, profile.tokens) for profile in PROFILES.values()}
    assert sizes == {
        "c4-100x512": (100, 512),
        "c4-128x2048": (128, 2048),
        "pile-128x512": (128, 512),
        "wikitext2-128x2048": (128, 2048),
    }


def test_document_profiles_draw_from_documents_that_are_long_enough(tokenizer, tmp_path):
    path = tmp_path / "c4.jsonl.gz"
    texts = [words(40, index) if index % 2 else words(3) for index in range(220)]
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    calibration = load(path, tokenizer)
    assert calibration.ids.shape == (100, 16)
    consecutive = (calibration.ids[:, 2:] - calibration.ids[:, 1:-1]) % 50
    assert bool((consecutive == 1).all())  # no window runs over the end of a document
    assert torch.equal(calibration.ids, load(path, tokenizer).ids)
    assert calibration.source.profile == "c4-100x512"


def test_cut_profiles_take_windows_one_after_another(tokenizer, tmp_path):
    path = tmp_path / "pile.txt"
    path.write_text(words(40))
    ids = load(path, tokenizer, "pile-128x512").ids
    assert ids.tolist() == [[1, *range(2, 17)], [*range(17, 33)]]


def test_token_files_are_taken_as_they_are(tokenizer, tmp_path):
    windows = np.arange(36, dtype=np.uint16).reshape(3, 12)
    np.save(tmp_path / "ids.npy", windows)
    assert load(tmp_path / "ids.npy", tokenizer).ids.tolist() == windows.tolist()
    windows.tofile(tmp_path / "ids.u16")
    assert load(tmp_path / "ids.u16", tokenizer).ids.tolist() == [[*range(16)], [*range(16, 32)]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"no array", "cannot be read as token numbers"),
        ("a.txt", b"\xff\xfe\xff", "cannot be read as text"),
        ("a.txt", b"w1 w2", "expected at least 16"),
        ("a.txt.gz", b"no gzip", "cannot be read as text"),
        ("a.jsonl", b'{"text": "w1"}\n{"txt": "w1"}\n', r"a.jsonl:2: expected an object"),
    ],
)
def test_unusable_files_are_refused(tokenizer, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / name, tokenizer)


def test_arrays_of_objects_are_never_unpickled(tokenizer, tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match="cannot be read as token numbers"):
        load(tmp_path / "a.npy", tokenizer)


def test_tokens_of_another_vocabulary_are_refused(tokenizer, tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 8), 52))
    with pytest.raises(CheckpointError, match=r"has token 52, expected 0..51"):
        load(tmp_path / "a.npy", tokenizer)


def test_unknown_profiles_and_suffixes_are_refused(tokenizer, tmp_path):
    with pytest.raises(UsageError, match="no calibration profile 'c4'; have: c4-100x512"):
        load(tmp_path / "a.txt", tokenizer, "c4")
    with pytest.raises(UsageError, match="expected a file of text or tokens"):
        load(tmp_path / "a.docx", tokenizer)


def test_in_domain_evaluation_is_recognised(tmp_path):
    for name, text in (("train", "a @-@ b"), ("test", "c @-@ d"), ("c4", "plain text")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(text)
    train, test, c4 = (source_of(tmp_path / n / "text.txt") for n in ("train", "test", "c4"))
    assert "itself" in in_domain(train, train)
    assert "both WikiText" in in_domain(train, test)
    assert in_domain(c4, test) is None
    (tmp_path / "c4" / "other.txt").write_text("other")
    assert "one folder" in in_domain(c4, source_of(tmp_path / "c4" / "other.txt"))


def test_documents_of_plain_text_are_parted_by_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\nstill one\n\ntwo\n\n\n\nthree")
    assert [part.strip() for part in read_documents(path)] == ["one\nstill one", "two", "three"]
    assert read_text(path) == path.read_text()


def evaluation(path, folder, **protocol) -> EvaluationText:
    return load_evaluation(path, folder, Protocol(**protocol), longest=16, vocabulary=52)


def test_text_is_joined_and_cut_with_one_bos(tokenizer, tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_text(words(20) + "\n\n" + words(20))
    text = evaluation(path, tokenizer)
    assert text.ids.shape == (2, 16)
    assert text.ids[:, 0].tolist() == [1, 17]
    assert text.label == (
        "wiki.txt: 2 windows of 16 tokens, joined text cut without overlap (papers: 2048)"
    )


def test_a_bos_in_every_window_is_said(tokenizer, tmp_path):
    (tmp_path / "wiki.txt").write_text(words(40))
    text = evaluation(tmp_path / "wiki.txt", tokenizer, bos=1, window=8, limit=2)
    assert text.ids.shape == (2, 8)
    assert text.ids[:, 0].tolist() == [1, 1]
    assert "token 1 put first in each" in text.label
    assert "only the first 2 windows" in text.label


def test_a_text_shorter_than_a_window_is_refused(tokenizer, tmp_path):
    (tmp_path / "wiki.txt").write_text("w1")
    with pytest.raises(CheckpointError, match="fewer than one window of 16 tokens"):
        evaluation(tmp_path / "wiki.txt", tokenizer)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    def model(input_ids, use_cache):
        assert not use_cache
        return SimpleNamespace(logits=torch.zeros((*input_ids.shape, 52)))

    result = perplexity(model, EvaluationText(ids=torch.ones((3, 8), dtype=torch.long), label=""))
    assert result.value == pytest.approx(52)
    assert result.nll_per_token == pytest.approx(math.log(52))
    assert result.predictions == 3 * 7


def test_perplexity_scores_the_next_token_from_the_ones_before():
    def model(input_ids, use_cache):  # noqa: ARG001
        following = torch.nn.functional.one_hot((input_ids + 1) % 52, 52)
        return SimpleNamespace(logits=100.0 * following)

    text = EvaluationText(ids=torch.arange(8)[None], label="")
    assert perplexity(model, text).value == pytest.approx(1)
