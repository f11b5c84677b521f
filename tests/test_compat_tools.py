"""Tools that people use around a model, each with the real package where it is installed (extra: compat)."""

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchrnn

T, B, I, H = 6, 5, 3, 4
KINDS = [torchrnn.RNN, torchrnn.LSTM, torchrnn.GRU]
every_kind = pytest.mark.parametrize("make", KINDS)


def needs(module: str) -> Any:
    package = module.split(".")[0]
    pytest.importorskip(package, reason=f"{package} is not installed: pip install torchrnn[compat]")
    return importlib.import_module(module)


class Model(nn.Module):
    """A layer over (B, T, I), and a head on its last output."""

    def __init__(self, make: Any = torchrnn.LSTM) -> None:
        super().__init__()
        self.rnn = make(I, H, batch_first=True)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@every_kind
def test_torchinfo(make: Any) -> None:
    torchinfo = needs("torchinfo")
    ours, theirs = (
        torchinfo.summary(model, input_size=(T, B, I), verbose=0)
        for model in (make(I, H, 2), getattr(nn, make.__name__)(I, H, 2))
    )
    assert ours.total_params == theirs.total_params
    assert ours.total_output_bytes == theirs.total_output_bytes
    assert make.__name__ in str(ours)


@every_kind
def test_fvcore(make: Any) -> None:
    fvcore = needs("fvcore.nn")
    model = Model(make)
    counted = fvcore.FlopCountAnalysis(model, torch.randn(B, T, I)).unsupported_ops_warnings(False)
    assert counted.by_operator()["linear"] == B * H * 2
    assert fvcore.parameter_count(model)["rnn"] == sum(p.numel() for p in model.rnn.parameters())
    # the layer is one operator there, as torch.nn's is, for which fvcore has no formula
    assert [name for name in counted.unsupported_ops() if "rnn" in name or "lstm" in name or "gru" in name]


@every_kind
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_captum(make: Any) -> None:
    captum = needs("captum.attr")
    model, x = Model(make).double().eval(), torch.randn(B, T, I, dtype=torch.float64)
    parts = captum.IntegratedGradients(model).attribute(x, target=1, n_steps=64)
    difference = (model(x) - model(torch.zeros_like(x)))[:, 1]
    torch.testing.assert_close(parts.sum((1, 2)), difference, atol=1e-6, rtol=0)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    torch.testing.assert_close(captum.Saliency(model).attribute(x, target=0), slope.abs())


class OutputOnly(torchrnn.LSTM):
    """Opacus takes layers that give one Tensor."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)[0]


class OfSequences(nn.Module):
    """A layer whose whole output is used, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = OutputOnly(I, H, batch_first=True)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)).mean(1)


def of_last_outputs(make: Any) -> nn.Module:
    return nn.Sequential(make(I, H, batch_first=True, bidirectional=True, return_sequences=False), nn.Linear(2 * H, 2))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("build", [*(lambda make=make: of_last_outputs(make) for make in KINDS), OfSequences])
def test_opacus_clips_by_sample(build: Any) -> None:
    opacus = needs("opacus")
    model, x = build().double(), torch.randn(B, T, I, dtype=torch.float64)
    opacus.GradSampleModule(model, loss_reduction="sum")(x).pow(2).sum().backward()
    by_sample = {name: p.grad_sample for name, p in model.named_parameters()}
    plain = build().double()
    plain.load_state_dict(model.state_dict())
    for k in range(B):
        plain.zero_grad()
        plain(x[k : k + 1]).pow(2).sum().backward()
        for name, p in plain.named_parameters():
            torch.testing.assert_close(by_sample[name][k], p.grad, atol=1e-12, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:Secure RNG turned off")
def test_opacus_trains() -> None:
    opacus = needs("opacus")
    x, labels = torch.randn(20, T, I), torch.arange(20) % 2
    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=5)
    model = of_last_outputs(torchrnn.GRU)
    before = [p.detach().clone() for p in model.parameters()]
    private: Any = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=rows,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    wrapped, optimiser, loader = private
    for some, of in loader:
        optimiser.zero_grad()
        nn.functional.cross_entropy(wrapped(some), of).backward()
        optimiser.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@every_kind
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*does not have many workers"
)
def test_lightning(make: Any) -> None:
    lightning = needs("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model(make)

        def training_step(self, batch: Any) -> Tensor:
            return self.model(batch[0]).float().pow(2).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_steps=2, accelerator="cpu", devices=1, precision="bf16-mixed", **quiet)
    module = Module()
    before = [p.detach().clone() for p in module.parameters()]
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, T, I)), batch_size=2))
    assert trainer.global_step == 2
    assert all(not torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


@every_kind
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(make: Any, precision: str) -> None:
    accelerate = needs("accelerate")
    AcceleratorState = needs("accelerate.state").AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    model = Model(make)
    wrapped, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = [p.detach().clone() for p in model.parameters()]
    y = wrapped(torch.randn(B, T, I))
    accelerator.backward(y.pow(2).mean())
    optimiser.step()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert y.dtype == torch.float32  # accelerate widens what a model gives
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@every_kind
def test_safetensors(make: Any, tmp_path: Path) -> None:
    safetensors = needs("safetensors.torch")
    model, other, x = Model(make), Model(make), torch.randn(B, T, I)
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(model(x), other(x))
    theirs = nn.ModuleDict({"rnn": getattr(nn, make.__name__)(I, H, batch_first=True), "head": nn.Linear(H, 2)})
    safetensors.load_model(theirs, str(tmp_path / "model.safetensors"))  # the names are torch.nn's
    torch.testing.assert_close(theirs["rnn"](x)[0], model.rnn(x)[0])


@every_kind
def test_skorch(make: Any) -> None:
    skorch = needs("skorch")
    x = np.random.default_rng(0).normal(size=(40, T, I)).astype("float32")
    labels = (x.sum((1, 2)) > 0).astype("int64")
    net = skorch.NeuralNetClassifier(
        Model, module__make=make, criterion=nn.CrossEntropyLoss, max_epochs=12, lr=0.5, verbose=0, train_split=None
    )
    net.fit(x, labels)
    losses = net.history[:, "train_loss"]
    assert losses[-1] < losses[0]
    assert net.predict(x).shape == (40,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_recurrent_ppo_with_its_lstm_converted() -> None:
    sb3 = needs("sb3_contrib")
    options = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu"}
    agent = sb3.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=0, policy_kwargs={"lstm_hidden_size": 8}, **options)
    observation = agent.get_env().reset()
    begin = np.ones(1, bool)
    expected = agent.predict(observation, episode_start=begin, deterministic=True)
    torchrnn.convert(agent.policy)
    assert isinstance(agent.policy.lstm_actor, torchrnn.LSTM)
    got = agent.predict(observation, episode_start=begin, deterministic=True)
    assert got[0] == expected[0]
    for a, b in zip(got[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    before = [p.detach().clone() for p in agent.policy.lstm_actor.parameters()]
    agent.learn(32)
    assert any(not torch.equal(p, q) for p, q in zip(agent.policy.lstm_actor.parameters(), before, strict=True))


def test_the_page_names_tests_that_exist() -> None:
    here = Path(__file__).parent
    page = (here.parent / "docs" / "works-with.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and "`test_" in line]
    source = "".join(file.read_text() for file in here.glob("test_compat_*.py"))
    missing = [name for row in rows for name in re.findall(r"`(test_\w+)`", row) if f"def {name}(" not in source]
    assert len(rows) > 20
    assert not missing
