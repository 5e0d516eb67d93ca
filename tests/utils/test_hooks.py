"""Capturing and replacing tensors of networks."""

import threading
import warnings
from collections import OrderedDict, defaultdict, namedtuple

import pytest
import torch
from torch import nn

from panda_sklearn import GeneratorFeatureExtractor
from panda_sklearn.generators import list_layers, sample_latents
from panda_sklearn.utils.hooks import capture, find_layer, replace
from panda_sklearn.utils.taps import Tap
from tests.networks import Containers, TinyTransformer, borrowed

CPU = torch.device("cpu")


def tap(network, name, **options):
    return Tap(name, find_layer(network, name), **options)


def n_hooks(network):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()
    )


def test_unknown_layer_offers_near_names(network):
    with pytest.raises(ValueError, match=r"no layer 'blok2'. Nearest names: block2"):
        find_layer(network, "blok2")


def test_layers_are_found_under_every_name(network):
    network.alias = network.block1
    assert find_layer(network, "alias") is network.block1


def test_captures_outputs_and_inputs(network, z):
    seen = capture(tap(network, "block2"), lambda: network(z))
    features = seen.tensors[-1]
    seen = capture(tap(network, "to_rgb2", where="input"), lambda: network(z))
    torch.testing.assert_close(seen.tensors[-1], features.relu())
    # The network overwrote block2's output in place after the hook saw it.
    assert features.min() < 0 and n_hooks(network) == 0


def test_stops_early(network, z):
    def never(*args):
        raise AssertionError("ran on")

    network.to_rgb1.register_forward_pre_hook(never)
    seen = capture(tap(network, "block1"), lambda: network(z), stop=True)
    assert seen.tensors[-1].shape == (4, 5, 4, 4)
    assert n_hooks(network) == 1  # its own


def test_early_stop_is_not_caught_by_the_network(network, z):
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, z):
            try:
                return self.inner(z)
            except Exception:
                raise AssertionError("caught") from None

    careful = Careful()
    seen = capture(tap(careful, "inner.block1"), lambda: careful(z), stop=True)
    assert seen.tensors[-1] is not None


def test_calls_are_counted_and_told_apart(network, z):
    first, second = [], []
    seen = capture(tap(network, "norm", calls=(0,)), lambda: network(z))
    assert seen.n_calls == 2
    first = seen.tensors[-1]
    seen = capture(tap(network, "norm", calls=(1,)), lambda: network(z))
    second = seen.tensors[-1]
    assert first.shape == (4, 5, 2, 2) and second.shape == (4, 5, 4, 4)
    seen = capture(tap(network, "norm"), lambda: network(z))
    with pytest.raises(ValueError, match=r"ran 2 times .* say which with call"):
        seen.check()
    seen = capture(tap(network, "norm", calls=(2,)), lambda: network(z))
    with pytest.raises(ValueError, match=r"call=2.* ran 2 times"):
        seen.check()


def test_a_layer_that_never_runs(network, z):
    seen = capture(tap(network, "unused"), lambda: network(z))
    with pytest.raises(ValueError, match="'unused' never ran"):
        seen.check()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_exception(network, z, error):
    def fail(*args):
        raise error

    handle = network.to_rgb1.register_forward_hook(fail)
    with pytest.raises(error):
        capture(tap(network, "block1"), lambda: network(z))
    with pytest.raises(error):
        replace(
            tap(network, "block1", where="input"),
            lambda x, at: x,
            lambda: network(z),
        )
    handle.remove()
    assert n_hooks(network) == 0


def test_replacing_an_output_reaches_every_consumer(network, z):
    edited = replace(tap(network, "block1"), lambda x, at: 2 * x, lambda: network(z))
    expected = network.by_hand(z, lambda x: 2 * x)[1]
    torch.testing.assert_close(edited, expected)
    # The input of to_rgb1 alone leaves the path through block2 as it was.
    own_input = tap(network, "to_rgb1", where="input")
    other = replace(own_input, lambda x, at: 2 * x, lambda: network(z))
    assert not torch.allclose(other, expected)
    assert not torch.allclose(other, network(z))


def test_replacement_takes_dtype_and_layout_of_the_original(network, z):
    seen = {}

    def change(x, moment):
        seen["strides"] = x.stride()
        return x.double().contiguous() + 1

    network.to(memory_format=torch.channels_last)
    network.to_rgb1.register_forward_pre_hook(lambda m, a: seen.update(got=a[0]))
    original = torch.empty(4, 5, 4, 4).to(memory_format=torch.channels_last)
    replace(tap(network, "block1"), change, lambda: network(z))
    assert seen["got"].dtype == torch.float32
    assert seen["got"].stride() == seen["strides"] == original.stride()


def test_replacement_of_another_shape(network, z):
    with pytest.raises(ValueError, match=r"\(4, 5, 4, 4\), got \(4, 5, 4, 3\)"):
        replace(tap(network, "block1"), lambda x, at: x[..., 1:], lambda: network(z))
    assert n_hooks(network) == 0


def test_containers(z):
    network = Containers()
    x = z[:, :, None]
    for name, select, expected in (
        ("pair", 1, 3 * x),
        ("named", "maps", 4 * x),
        ("pieces", 0, 3 * x),
    ):
        seen = capture(tap(network, name, select=select), lambda: network(z))
        torch.testing.assert_close(seen.tensors[-1], expected)
        plain = network(z)
        chosen = tap(network, name, select=select)
        moved = replace(chosen, lambda x, at: x + 1, lambda: network(z))
        assert (moved - plain).min() > 0.5  # the other entries still arrive


@pytest.mark.parametrize(
    "name, options, kind, match",
    [
        ("pair", {}, ValueError, r"tuple of several: say which with select.*\[0, 1\]"),
        ("named", {}, ValueError, r"dict of several.*'maps'"),
        ("pair", {"select": 2}, ValueError, r"select=2 is not in"),
        ("named", {"select": "name"}, TypeError, "of type str"),
        ("number", {}, TypeError, "of type int"),
        ("loner", {"select": 0}, ValueError, "leave select at None"),
    ],
)
def test_unclear_taps(z, name, options, kind, match):
    network = Containers()
    with pytest.raises(kind, match=match):
        capture(tap(network, name, **options), lambda: network(z))
    assert n_hooks(network) == 0


def test_threads_see_their_own_activations(network):
    """Many threads use one network in train mode, each with its own latents."""
    network.train()
    latents = torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(0))
    with borrowed(network, CPU):
        expected = [network.by_hand(z)[0] for z in latents]
    wrong = []
    barrier = threading.Barrier(len(latents))

    def work(i):
        barrier.wait()
        for _ in range(30):
            with borrowed(network, CPU):
                seen = capture(
                    tap(network, "block1"), lambda: network(latents[i]), stop=True
                )
            if not torch.allclose(seen.tensors[-1], expected[i], atol=1e-4):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(latents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert network.training and n_hooks(network) == 0


@pytest.mark.filterwarnings("ignore")  # torch.jit warns that it is deprecated
def test_scripted_networks_are_refused(network, z):
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6)))
    with pytest.raises(TypeError, match="scripted"):
        find_layer(scripted, "0")
    with pytest.raises(TypeError, match="scripted"):
        find_layer(nn.Sequential(scripted), "0")
    traced = torch.jit.trace(network.block1, torch.zeros(1, 5, 4, 4))
    with pytest.raises(TypeError, match="traced"):
        find_layer(traced, "")
    with pytest.raises(TypeError, match="traced"):
        list_layers(traced, torch.zeros(1, 5, 4, 4))


def test_replicated_networks_are_refused(network, z):
    for call in (find_layer, list_layers, sample_latents):
        with pytest.raises(TypeError, match=r"DataParallel.*generator\.module"):
            call(nn.DataParallel(network), "block1")


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_networks_are_hooked(network, z, whole):
    expected = network.by_hand(z)[0]
    if whole:
        compiled = torch.compile(network, backend="eager")
    else:
        network.block1.compile(backend="eager")
        compiled = network
    with torch.no_grad():
        compiled(z)
    with borrowed(compiled, CPU):
        seen = capture(tap(compiled, "block1"), lambda: compiled(z), stop=True)
    torch.testing.assert_close(seen.tensors[-1], expected)


def test_attention_gives_its_tokens_and_none():
    network = TinyTransformer()
    pictures = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    tokens = tap(network, "mix", select=0)
    seen = capture(tokens, lambda: network(pictures))
    assert seen.tensors[-1].shape == (2, 8, 8)
    same = replace(tokens, lambda x, at: x, lambda: network(pictures))
    torch.testing.assert_close(same, seen.result)
    with pytest.raises(TypeError, match="select=1 of layer 'mix' is of type NoneType"):
        capture(tap(network, "mix", select=1), lambda: network(pictures))


def test_a_named_tuple_stays_one():
    Pair = namedtuple("Pair", "first second")

    class Named(nn.Module):
        def forward(self, x):
            return Pair(x, 2 * x)

    network = nn.Sequential(Named())
    second = tap(network, "0", select=1)
    out = replace(second, lambda x, at: x + 1, lambda: network(torch.ones(1, 1)))
    assert isinstance(out, Pair) and out.second.item() == 3 and out.first.item() == 1


def test_containers_and_direct_calls_never_run(z):
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6)])
            self.fused = nn.Linear(6, 6)

        def forward(self, x):
            x = self.layers[0](x)
            return self.fused.forward(x)

    network = Direct()
    for name in ("layers", "fused"):
        seen = capture(tap(network, name), lambda: network(z))
        with pytest.raises(ValueError, match=f"{name!r} never ran"):
            seen.check()
    assert list(dict.fromkeys(layer.name for layer in list_layers(network, z))) == [
        "layers.0"
    ]


def test_other_people_s_hooks_stay_and_see_the_replacement(network, z):
    seen = []
    before = network.block1.register_forward_hook(
        lambda layer, args, output: seen.append(("before", output.mean().item()))
    )
    handles = []

    def run():
        handles.append(
            network.block1.register_forward_hook(
                lambda layer, args, output: seen.append(("after", output.mean().item()))
            )
        )
        return network(z)

    replace(tap(network, "block1"), lambda x, at: 0 * x + 7, run)
    assert [name for name, _ in seen] == ["before", "after"]
    assert seen[0][1] != 7 and seen[1][1] == 7
    assert n_hooks(network) == 2
    before.remove()
    handles.pop().remove()


def test_spectral_norm_by_hooks_goes_on(z):
    """torch's older spectral norm is a hook on the layer that it normalises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = nn.utils.spectral_norm(nn.Linear(6, 5))
    network = nn.Sequential(normed, nn.ReLU()).train()
    own = dict(normed._forward_pre_hooks)
    u = normed.weight_u.clone()
    inputs = tap(network, "0", where="input")
    with borrowed(network, CPU):
        seen = capture(inputs, lambda: network(z))
    expected = seen.result
    assert torch.equal(seen.tensors[-1], z)
    with borrowed(network, CPU):
        assert torch.equal(
            replace(inputs, lambda x, at: x, lambda: network(z)), expected
        )
    assert torch.equal(normed.weight_u, u)  # no power iteration in evaluation mode
    assert dict(normed._forward_pre_hooks) == own and network.training


def test_what_is_captured_can_be_used_with_autograd(network, z):
    with borrowed(network, CPU):
        seen = capture(tap(network, "block1"), lambda: network(z), stop=True)
    weight = torch.ones(5, requires_grad=True)
    (seen.tensors[-1] * weight[:, None, None]).sum().backward()
    assert weight.grad.shape == (5,)


def test_reshaped_outputs_that_are_not_contiguous(z):
    class Turned(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 2, 3).transpose(1, 2)

    network = nn.Sequential(Turned(), nn.Identity())
    seen = capture(tap(network, "0"), lambda: network(z))
    original = seen.result
    assert not original.is_contiguous() and torch.equal(seen.tensors[-1], original)
    edited = replace(
        tap(network, "0"), lambda x, at: x.contiguous() + 1, lambda: network(z)
    )
    assert edited.stride() == original.stride()
    torch.testing.assert_close(edited, original + 1)


class Boxed(tuple):
    """A tuple with a constructor of its own, and an attribute."""

    def __new__(cls, maps, *, note):
        box = super().__new__(cls, (maps, "kept"))
        box.note = note
        return box


def as_defaultdict(x):
    found = defaultdict(list)
    found["maps"] = x
    return found


Output = namedtuple("Output", "maps note", defaults=("kept",))


@pytest.mark.parametrize(
    ("make", "select"),
    [
        (as_defaultdict, "maps"),
        (lambda x: OrderedDict(first=1, maps=x), "maps"),
        (lambda x: Boxed(x, note="kept"), 0),
        (Output, 0),
        (lambda x: torch.max(x, dim=1), 0),
    ],
)
def test_containers_with_constructors_of_their_own(make, select, z):
    given = []

    class Layer(nn.Module):
        def forward(self, x):
            return make(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer()

        def forward(self, x):
            given.append(self.layer(x))
            return given[-1][select]

    network = Network()
    chosen = tap(network, "layer", select=select)
    seen = capture(chosen, lambda: network(z))
    changed = replace(chosen, lambda x, at: x + 1, lambda: network(z))
    assert torch.equal(changed, seen.tensors[-1] + 1)
    before, after = given
    assert type(after) is type(before) and len(after) == len(before)
    assert getattr(after, "note", "kept") == "kept"
    if isinstance(after, defaultdict):
        assert after["other"] == []


def test_containers_that_cannot_be_copied(z):
    class Locked(dict):
        def __setitem__(self, key, value):
            raise AttributeError("locked")

    class Layer(nn.Module):
        def forward(self, x):
            return Locked(maps=x)

    network = nn.Sequential(Layer())
    with pytest.raises(TypeError, match=r"of type Locked, of which no copy"):
        replace(
            tap(network, "0", select="maps"), lambda x, at: x + 1, lambda: network(z)
        )


@pytest.mark.parametrize(
    "change",
    [lambda x, at: None, lambda x, at: x.numpy(), lambda x, at: (x,)],
)
def test_replacements_that_are_no_tensors(network, z, change):
    network.requires_grad_(False)
    with pytest.raises(TypeError, match=r"'block1' must be a tensor of shape \(4, 5,"):
        replace(tap(network, "block1"), change, lambda: network(z))
    assert n_hooks(network) == 0


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_pass_is_not_cut_short_where_hooks_must_be_called(network, z, everywhere):
    """Such hooks come in pairs: one before a layer, one after it whatever happens."""
    depth, deepest = [0], []

    def enter(*args):
        depth[0] += 1
        deepest.append(depth[0])

    def leave(*args):
        depth[0] -= 1

    if everywhere:
        handles = [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave, always_call=True),
        ]
    else:
        handles = [
            network.register_forward_pre_hook(enter),
            network.register_forward_hook(leave, always_call=True),
        ]
    try:
        extractor = GeneratorFeatureExtractor(network, "block1").fit(z)
        features = extractor.transform(z)
    finally:
        for handle in handles:
            handle.remove()
    assert depth == [0] and deepest
    torch.testing.assert_close(extractor.transform(z), features)


def test_exported_networks_are_refused_and_leave_others_alone():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU()).eval()
    z = torch.ones(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(network, (z,)).module()
    with pytest.raises(TypeError, match=r"exported \(torch.export\)"):
        find_layer(exported, "0")
    outer = nn.Sequential(exported, nn.Linear(6, 2))
    features = GeneratorFeatureExtractor(outer, "1", batch_size=3).fit_transform(z)
    assert features.shape == (3, 2) and outer.training
