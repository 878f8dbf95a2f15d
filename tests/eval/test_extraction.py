"""Rows are computed once, by any processes, in any batches, after any interruption, and have the same bits."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.extraction import Extraction, Rows, code_digest
from gen.eval.features.pixels import Pixels
from gen.eval.image_sets import TensorImages

IMAGES = torch.randint(0, 256, (105, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Batched:
    """An extractor whose rows depend on the whole batch, so that any other batch shows."""

    batch: int = 8
    stop_after: int = 10**9
    calls: list[int] = field(default_factory=list, compare=False)
    name = "batched"
    sha256 = ""

    def load(self):
        return self

    def __call__(self, images):
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(images))
        x = images.flatten(1).float()
        return x + x.mean()

    def outputs(self, images):
        return {"features": self(images), "spatial": images.flatten(1)[:, :5].float()}


def rows_of(spec=None, images=IMAGES, **how) -> Rows:
    spec = spec or Batched()
    return Rows(TensorImages(images), spec, Pixels(), Extraction(**how))


@pytest.fixture(scope="module")
def whole() -> torch.Tensor:
    return rows_of().features


def test_chunks_are_of_one_size_whatever_the_batch(whole) -> None:
    for size in (1, 16, 33, 1000):
        rows = rows_of(batch_size=size)
        assert torch.equal(rows.features, whole)
        assert rows.extractor.calls == [16] * 7  # the least that a multiple of the extractor's batch can be
    with pytest.raises(AssertionError):  # and it matters: chunks of another size have other bits here
        assert torch.equal(rows_of(Batched(24)).features, whole)


def test_one_pass_yields_all_that_is_missing(tmp_path) -> None:
    rows = rows_of(root=tmp_path)
    rows.fill(["features", "spatial", "images"])
    assert len(rows.extractor.calls) == 7 and rows.rows("spatial").shape == (105, 5)
    assert torch.equal(rows.rows("images"), IMAGES) and rows.rows("labels") is rows.rows("prompts") is None
    again = rows_of(root=tmp_path)
    assert torch.equal(again.rows("spatial"), rows.rows("spatial")) and not again.extractor.calls


def test_other_pictures_extractors_or_code_are_not_read_from_a_store(tmp_path, monkeypatch) -> None:
    rows_of(root=tmp_path).fill()
    for change in ({"images": IMAGES ^ 1}, {"spec": Batched(24)}, {"images": IMAGES[:104]}):
        rows = rows_of(root=tmp_path, **change)
        rows.fill()
        assert rows.extractor.calls
    monkeypatch.setattr("gen.eval.extraction.code_digest", lambda: "other")
    rows = rows_of(root=tmp_path)
    rows.fill()
    assert rows.extractor.calls and code_digest() == code_digest()


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_parts_are_shared_out_and_a_missing_one_is_named(world, whole, tmp_path) -> None:
    counts = []
    for k in range(world, 0, -1):
        part = rows_of(root=tmp_path, part=(k, world))
        if k == 1 < world < 8:  # of 9 parts of 7 chunks the first has none
            with pytest.raises(UserError, match="chunks are missing, the first at sample 0: all parts have to be"):
                rows_of(root=tmp_path, part=(world, world)).features  # noqa: B018
        part.fill()
        counts.append(len(part.extractor.calls))
    assert sum(counts) == 7 and max(counts) - min(counts) <= 1
    done = rows_of(root=tmp_path)
    assert torch.equal(done.features, whole) and not done.extractor.calls


def test_what_was_interrupted_goes_on(whole, tmp_path) -> None:
    for stop in (2, 1, 3):
        with pytest.raises(KeyboardInterrupt):
            rows_of(Batched(stop_after=stop), root=tmp_path).fill()
    rows = rows_of(root=tmp_path)
    assert torch.equal(rows.features, whole) and len(rows.extractor.calls) == 1
    assert not list(tmp_path.rglob(".*"))


def test_two_processes_do_not_do_the_same_work(tmp_path, whole, capsys) -> None:
    second = rows_of(root=tmp_path, quiet=False)
    with ThreadPoolExecutor(1) as pool:

        class Twice(Batched):
            def __call__(self, images):
                if not self.calls:
                    others.append(pool.submit(second.fill))
                    time.sleep(0.3)  # the other begins, and waits
                return super().__call__(images)

        others: list[Future[None]] = []
        rows_of(Twice(), root=tmp_path).fill()
        others[0].result()
    assert torch.equal(second.features, whole) and not second.extractor.calls
    assert "is writing it: waiting" in capsys.readouterr().err


def test_features_of_films_and_wrong_ones() -> None:
    films = torch.randint(0, 256, (5, 3, 2, 4, 4), dtype=torch.uint8)
    assert rows_of(images=films).features.shape == (5, 96)

    class Broken(Batched):
        def __call__(self, images):
            return torch.full((len(images), 2), torch.nan)

    with pytest.raises(UserError, match="the features of sample 0 are not finite"):
        rows_of(Broken()).fill()
