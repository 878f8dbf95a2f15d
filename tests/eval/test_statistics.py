"""Files of statistics: those of every tool are read, ours are read by every tool, and each part is for one thing."""

import json
import pickle

import numpy as np
import pytest
import torch

from gen.cli import main
from gen.config.errors import UserError
from gen.data.digits import Digits
from gen.eval.evaluate import evaluate
from gen.eval.metrics.lib.moments import Moments, distance
from gen.eval.reference import Reference, stack
from gen.eval.statistics import is_statistics, read_statistics
from tests.eval.test_evaluate import Copier

D = 6
ROWS = torch.randn(40, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MU, SIGMA = ROWS.mean(0).numpy(), np.cov(ROWS.T.numpy())


@pytest.fixture(scope="module")
def copier() -> Copier:
    return Copier(*stack(Digits().open("train")))


@pytest.fixture(scope="module")
def digits_npz(tmp_path_factory):
    """Statistics of the held-out digits, by the verb."""
    file = tmp_path_factory.mktemp("ref") / "ref.npz"
    words = ["statistics", "digits", "--split", "test", "--out", str(file), "--features", str(file.parent)]
    assert main(words) == 0
    return file


def close(a: Moments) -> bool:
    return distance(a, Moments.of_covariance(torch.from_numpy(MU), torch.from_numpy(SIGMA))) < 1e-9


def test_statistics_that_do_not_fit_say_why(tmp_path, copier, capsys) -> None:
    np.savez(tmp_path / "wide.npz", mu=np.zeros(70), sigma=np.eye(70))
    with pytest.raises(UserError, match=r"wide.npz holds statistics of 70 features, pixels has 64: name the extractor"):
        evaluate(copier, tmp_path / "wide.npz", extractor="pixels", n=12, seconds=0.01)
    np.savez(tmp_path / "half.npz", mu=np.zeros(64))
    with pytest.raises(UserError, match=r"no metric can be computed: .*half.npz hold no features"):
        evaluate(copier, tmp_path / "half.npz", extractor="pixels", n=12, seconds=0.01)
    np.savez(tmp_path / "one.npz", np.zeros((1, 8, 8, 1), np.uint8))
    words = ["statistics", str(tmp_path / "one.npz"), "--features", str(tmp_path), "--out", str(tmp_path / "ref.npz")]
    assert main(words) == 2 and "one.npz holds one picture, which has no covariance" in capsys.readouterr().err


def test_every_tools_file_is_read(tmp_path) -> None:
    pair = {"mu": MU, "sigma": SIGMA}
    np.savez(tmp_path / "pytorch_fid.npz", **pair)
    np.savez(tmp_path / "meanflow.npz", ref_mu=MU, ref_sigma=SIGMA)
    np.savez(tmp_path / "adm.npz", **pair, mu_s=MU[:3], sigma_s=SIGMA[:3, :3], arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    np.savez_compressed(tmp_path / "packed.npz", **pair)
    for name in ("pytorch_fid", "meanflow", "adm", "packed"):
        found = read_statistics(tmp_path / f"{name}.npz", "inception")
        assert is_statistics(found.path) and close(found.moments["features"])
    adm = read_statistics(tmp_path / "adm.npz")
    assert len(adm.moments["spatial"].mean) == 3 and len(adm.images) == 4 and adm.features is None
    held = {"num_images": 5, "fid": {"mu": MU + 1, "sigma": SIGMA}, "fd_dinov2": pair}
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps(held))
    assert close(read_statistics(tmp_path / "edm2.pkl", "dinov2 vitl14").moments["features"])
    assert not close(read_statistics(tmp_path / "edm2.pkl", "inception tf1").moments["features"])
    np.save(tmp_path / "cmmd.npy", ROWS.float().numpy())
    np.savez(tmp_path / "clean_kid.npz", feats=ROWS.float().numpy())
    for name in ("cmmd.npy", "clean_kid.npz"):
        assert torch.equal(read_statistics(tmp_path / name).features, ROWS.float())


class Runs:
    def __reduce__(self):
        return (pytest.fail, ("it ran",))


def test_nothing_of_a_file_runs_and_wrong_ones_are_refused(tmp_path) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"fid": {"mu": Runs(), "sigma": Runs()}}))
    np.savez(tmp_path / "nan.npz", mu=MU * np.nan, sigma=SIGMA)
    np.savez(tmp_path / "shape.npz", mu=MU, sigma=SIGMA[:3])
    np.savez(tmp_path / "asymmetric.npz", mu=MU, sigma=np.triu(SIGMA))
    np.savez(tmp_path / "objects.npz", mu=np.array([None]), sigma=SIGMA)
    np.savez(tmp_path / "mine.npz", mu=MU, sigma=SIGMA, gen=np.array("[1]"))
    (tmp_path / "none.pkl").write_bytes(pickle.dumps({"fid": 3}))
    for name, says in (
        ("evil.pkl", "evil.pkl"), ("nan.npz", "not finite"), ("shape.npz", "with covariance [3, 6]"),
        ("asymmetric.npz", "is not symmetric"), ("objects.npz", "Python objects"), ("mine.npz", "names no extractor"),
        ("none.pkl", "has no fid with mu and sigma; it holds fid"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            read_statistics(tmp_path / name)
        assert says in str(error.value) and "\n" not in str(error.value)


def test_ours_is_read_by_other_tools_and_gives_the_same_distance(digits_npz, copier, tmp_path) -> None:
    with np.load(digits_npz) as file:  # as pytorch-fid and clean-fid read it, pickles refused
        mu, sigma, about = file["mu"], file["sigma"], json.loads(str(file["gen"]))
    features = Reference.open("digits").test.features.double()
    np.testing.assert_allclose(mu, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(features.T.numpy()), atol=1e-12)
    assert about["n"] == 360 and about["extractor"]["name"] == "digits_cnn" and len(about["fingerprint"]) == 64
    how = {"n": 40, "seconds": 0.01, "extractor": "digits_cnn", "metrics": ["fid"]}
    ours, theirs = (evaluate(copier, against, **how) for against in (digits_npz, "digits"))
    assert ours.estimate("fid").value == pytest.approx(theirs.estimate("fid").value, rel=1e-9)
    assert ours.estimate("fid").se == pytest.approx(theirs.estimate("fid").se, rel=1e-6)
    assert (ours.reference.split, ours.reference.n, ours.reference.assumed) == ("statistics", 360, "")
    assert f"--against {digits_npz}" not in ours.command and str(digits_npz) in ours.command
    with pytest.raises(UserError, match=r"was computed by digits_cnn .*, the samples' features are of pixels: not"):
        evaluate(copier, digits_npz, **{**how, "extractor": "pixels"})
    with pytest.raises(UserError, match=r"kid needs features, but the statistics .* hold no features of single images"):
        evaluate(copier, digits_npz, **{**how, "metrics": ["kid"]})
    own = evaluate(copier, digits_npz, **{**how, "extractor": None})  # our file names its extractor
    assert own.metrics == ours.metrics and own.comparability == ours.comparability
    np.savez(tmp_path / "other.npz", mu=mu, sigma=sigma)
    with pytest.raises(UserError, match="holds statistics: name their extractor"):
        evaluate(copier, tmp_path / "other.npz", n=40)


def test_what_a_file_does_not_say_is_assumed_aloud(digits_npz, copier, tmp_path, capsys) -> None:
    with np.load(digits_npz) as file:
        np.savez(tmp_path / "plain.npz", mu=file["mu"], sigma=file["sigma"])
    how = {"n": 40, "seconds": 0.01, "extractor": "digits_cnn"}
    record = evaluate(copier, tmp_path / "plain.npz", **how)
    assert record.reference.assumed == "computed by digits_cnn: the file does not say by which"
    assert record.reference.n is None and {"fid"} <= {m.column.key for m in record.metrics}
    stated = evaluate(copier, tmp_path / "plain.npz", reference_extractor="digits_cnn", **how)
    assert stated.reference.assumed == "computed by digits_cnn, as was stated"
    plain = read_statistics(tmp_path / "plain.npz")
    assert plain.assumed("inception 2048 tf1", "ab", "inception") == "computed by inception, as was stated"
    with pytest.raises(UserError, match="was computed by inception 2048 clean"):
        plain.assumed("inception 2048 tf1", "ab", "inception 2048 clean")
    with pytest.raises(UserError, match="reference_extractor = 'pixels': of statistics alone, digits holds pictures"):
        evaluate(copier, "digits", reference_extractor="pixels", **how)
    with pytest.raises(UserError, match="was computed by inception"):
        evaluate(copier, tmp_path / "plain.npz", reference_extractor="inception", **how)
    np.savez(tmp_path / "samples.npz", copier.images[:40].movedim(1, -1).numpy())
    words = ["evaluate", str(tmp_path / "samples.npz"), "--against", str(tmp_path / "plain.npz")]
    assert main([*words, "--extractor", "digits_cnn", "--metrics", "fid"]) == 0
    assert "plain.npz: computed by digits_cnn: the file does not say by which" in capsys.readouterr().out


def test_a_picture_file_is_no_statistics(tmp_path) -> None:
    np.savez(tmp_path / "pictures.npz", np.zeros((4, 8, 8, 3), np.uint8))
    np.save(tmp_path / "pictures.npy", np.zeros((4, 8, 8, 3), np.uint8))
    assert not is_statistics(tmp_path / "pictures.npz") and not is_statistics(tmp_path / "pictures.npy")
    assert not is_statistics(tmp_path) and not is_statistics(tmp_path / "none.npz")
