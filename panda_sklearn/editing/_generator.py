"""A generator with edits built in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from panda_sklearn.editing._changes import Change, change_of, check_edits
from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._editor import LocalEditor
from panda_sklearn.editing._lookup import Sizes
from panda_sklearn.editing._terms import (
    CoefficientTerm,
    LatentTerm,
    Term,
    TowardsTerm,
    VectorTerm,
)
from panda_sklearn.feature_extractor import running_device, tap_of
from panda_sklearn.generators._calls import called
from panda_sklearn.utils.arrays import as_tensor, promoted
from panda_sklearn.utils.borrowing import run_eagerly
from panda_sklearn.utils.hooks import Moment, can_be_stopped, capture, replace
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import (
    check_array_like,
    check_flag,
    check_kind,
    check_parameters,
)

__all__ = ["EditedGenerator"]


def _saved_tensors_hooks() -> Any:
    """The hooks by which autograd saves tensors; checkpointing installs its own."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if top is None else top(True)


class EditedGenerator(nn.Module):
    """A generator with edits built in, as a module like any other.

    Called with latents, it returns edited images. Gradients flow through it to latents
    that require them, and to the strengths, vectors and masks that are to be learnt.

    Parameters
    ----------
    editor : LocalEditor
        The editor of the generator. Its extractor determines how the generator is
        called.

    edits : Edit or sequence of Edit
        What to change, the same for all samples.

    refine : bool, default=False
        Whether to refine the parts to each sample. Refined parts are constants: no
        gradient flows through the refinement.

    learn_strengths : bool, default=False
        Whether ``strengths`` requires gradients.

    learn_vectors : bool, default=False
        Whether ``vectors`` requires gradients.

    learn_masks : bool, default=False
        Whether ``masks`` requires gradients; not with ``refine``.

    Attributes
    ----------
    generator : torch.nn.Module
        The editor's own generator, not a copy: moving this module to a device, or
        changing its mode, does the same to the generator.

    strengths : torch.nn.Parameter of shape (n_edits,)
        The strengths, in the edits' own units.

    vectors : torch.nn.Parameter of shape (n_vectors, n_channels)
        The vectors of those edits that add one, appearances and variations, in the
        order of the edits.

    masks : torch.nn.Parameter of shape (n_edits, n_positions)
        Where each edit is: parts scaled to the range 0 to 1, and drawn masks. Learnt
        masks may leave that range. Edits of coefficients at parts do not use theirs.

    Raises
    ------
    TypeError, ValueError
        As for ``LocalEditor.edit``; also if an array of an edit differs between
        samples, if it requires gradients, since this module learns parameters of its
        own, or if there is nothing to learn.
    RuntimeError
        When called with gradients on, if the generator runs the edited layer under
        activation checkpointing: the backward pass would run it again, unedited.

    See Also
    --------
    LocalEditor.edit : Edits many latents batch by batch, without gradients.

    Notes
    -----
    Unlike ``LocalEditor.edit``, it runs the generator as it is: in its mode, with
    whatever noise it draws, and on its device. The generator has no hooks between
    calls. Edits are applied in eager mode, even if the generator or this module was
    passed to ``torch.compile``. Each edit by ``latent`` runs the generator once more up
    to the layer, which updates the statistics of layers in training mode.

    Examples
    --------
    >>> import torch
    >>> from sklearn.pipeline import make_pipeline
    >>> from panda_sklearn import (
    ...     Edit,
    ...     GeneratorFeatureExtractor,
    ...     LocalEditor,
    ...     PartsAppearanceDecomposition,
    ... )
    >>> from panda_sklearn.datasets import load_face_generator, sample_latents
    >>> from panda_sklearn.editing import EditedGenerator
    >>> generator = load_face_generator()
    >>> latents = sample_latents(generator, 20, random_state=0)
    >>> pipeline = make_pipeline(
    ...     GeneratorFeatureExtractor(generator, "block8"),
    ...     PartsAppearanceDecomposition(4, 10, max_iter=20, tol=0, random_state=0),
    ... ).fit(latents)
    >>> editor = LocalEditor.from_pipeline(pipeline)
    >>> edited = EditedGenerator(editor, Edit(1, 2, 5.0), learn_strengths=True)
    >>> edited(latents[:2]).shape
    torch.Size([2, 3, 64, 64])
    >>> edited(latents[:2]).mean().backward()
    >>> edited.strengths.grad.shape
    torch.Size([1])
    """

    strengths: nn.Parameter
    scales: Tensor
    vectors: nn.Parameter
    masks: nn.Parameter

    def __init__(
        self,
        editor: LocalEditor,
        edits: Edit | Sequence[Edit],
        *,
        refine: bool = False,
        learn_strengths: bool = False,
        learn_vectors: bool = False,
        learn_masks: bool = False,
    ) -> None:
        super().__init__()
        check_kind("editor", editor, LocalEditor)
        for name, flag in (
            ("learn_strengths", learn_strengths),
            ("learn_vectors", learn_vectors),
            ("learn_masks", learn_masks),
        ):
            check_flag(name, flag)
        extractor, panda = editor.extractor, editor.decomposition
        edits = check_edits(edits)
        for edit in edits:
            _check_no_gradients(edit)
        change = change_of(edits, panda, Sizes.of(extractor, None), refine=refine)
        check_parameters(extractor)
        check_parameters(panda)
        _check_learnable(change, learn_vectors, learn_masks)
        self.generator = extractor.generator
        self.training = self.generator.training
        self._forward = extractor.forward
        self._tap = tap_of(extractor)
        self._change = change
        like = torch.empty(
            0,
            dtype=promoted(as_tensor(panda.appearances_)).dtype,
            device=running_device(extractor),
        )
        terms = change.terms
        vectors = [term.vector for term in terms if isinstance(term, VectorTerm)]
        vectors = vectors or [like.new_empty(0, panda.map_shape_[0])]
        for name, whole, learn in (
            ("strengths", [term.strength for term in terms], learn_strengths),
            ("vectors", vectors, learn_vectors),
            ("masks", [term.mask for term in terms], learn_masks),
        ):
            join = torch.cat if whole[0].ndim > 1 else torch.stack
            values = join([x.to(like) for x in whole])
            self.register_parameter(name, nn.Parameter(values, bool(learn)))
        scales = [term.scale for term in terms]
        self.register_buffer("scales", like.new_tensor(scales))
        # The other tensors of the terms belong to the module's state too.
        for n, term in enumerate(terms):
            for name in _constants(term):
                own = getattr(term, name).to(like, copy=True)
                self.register_buffer(f"{name}{n}", own)

    def forward(self, latents: Tensor) -> Tensor:
        """Generate edited images.

        Parameters
        ----------
        latents : Tensor of shape (n_samples, ...)
            Latents, on the generator's device and of its type. Latents with a column of
            classes are float32, and cast by the family in ``panda_sklearn.generators``.

        Returns
        -------
        images : Tensor of shape (n_samples, ...)
            Edited images.

        Raises
        ------
        TypeError, ValueError
            If the latents are not a dense tensor of such a shape.
        """
        check_array_like(latents, "latents", "a tensor of shape (n_samples, ...)")
        check_kind("latents", latents, Tensor)
        if torch.compiler.is_compiling():
            return torch.compiler.disable(self._run)(latents)
        return self._run(latents)

    def _run(self, latents: Tensor) -> Tensor:
        """Make a forward pass, with the edits hooked in while it lasts."""
        saving = _saved_tensors_hooks()
        learnt = self.strengths, self.vectors, self.masks
        given = (latents, *learnt, *self.generator.parameters())
        differentiates = torch.is_grad_enabled() and any(T.requires_grad for T in given)
        change = self._current()

        def check() -> None:
            if differentiates and (
                not torch.is_grad_enabled() or _saved_tensors_hooks() != saving
            ):
                raise RuntimeError(
                    f"Layer {self._tap.name!r} runs under activation checkpointing, "
                    "other hooks of saved tensors, or without gradients, switched on "
                    "by the generator itself. The backward pass would run it again "
                    "without the edit, and gradients would be wrong. Turn "
                    "checkpointing off in the generator, or call this module under "
                    "torch.no_grad()."
                )

        def run(latents: Tensor) -> Tensor:
            return called(self._forward, self.generator, latents)

        stop = can_be_stopped(self.generator)

        def take(others: Any) -> Tensor:
            # The pass itself will draw the same noise.
            on = [others.device] if others.is_cuda else []
            with torch.random.fork_rng(on):
                return capture(
                    self._tap,
                    lambda: run(others),
                    n_samples=len(others),
                    stop=stop,
                    detach=False,
                ).found()

        with Undo() as undo, undo:
            run_eagerly(undo, self.generator)
            apply = change.applied(latents, slice(None), take)

            def edit(features: Tensor, moment: Moment) -> Tensor:
                check()
                return apply(features, moment)

            moments = change.moments()
            return replace(
                dataclasses.replace(self._tap, calls=moments["calls"]),
                edit,
                lambda: run(latents),
                n_samples=len(latents),
                others=moments["others"],
            )

    def _current(self) -> Change:
        """The change, with the module's current parameters and buffers."""
        terms, vectors = [], iter(self.vectors)
        for n, term in enumerate(self._change.terms):
            changes: dict[str, Any] = {
                "strength": self.strengths[n],
                "scale": self.scales[n],
                "mask": self.masks[n],
            }
            if isinstance(term, VectorTerm):
                changes["vector"] = next(vectors)
            for name in _constants(term):
                changes[name] = getattr(self, f"{name}{n}")
            terms.append(dataclasses.replace(term, **changes))
        return dataclasses.replace(self._change, terms=terms)


def _constants(term: Term) -> tuple[str, ...]:
    """The tensors of a term that cannot be learnt, by attribute."""
    if isinstance(term, CoefficientTerm):
        return "target", "appearances", "least", "every", "learnt"
    if isinstance(term, LatentTerm):
        return ("direction",)
    return ("target",) if isinstance(term, TowardsTerm) else ()


def _check_no_gradients(edit: Edit) -> None:
    """Raise ValueError if an array of an edit requires gradients."""
    for field in dataclasses.fields(edit):
        value = getattr(edit, field.name)
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(
                f"{field.name} of an edit requires gradients, which would not reach it:"
                " this module learns parameters of its own. Detach it, and set "
                "learn_strengths, learn_vectors or learn_masks."
            )


def _check_learnable(change: Change, vectors: bool, masks: bool) -> None:
    """Raise ValueError if there is nothing to learn."""
    if vectors and not any(isinstance(term, VectorTerm) for term in change.terms):
        raise ValueError(
            "learn_vectors=True learns vectors of appearances and variations, but no "
            "edit has one. Leave it at False."
        )
    if masks and all(isinstance(t, CoefficientTerm) and t.parts for t in change.terms):
        raise ValueError(
            "learn_masks=True learns masks, but edits of coefficients at parts do not "
            "use theirs. Leave it at False."
        )
    if masks and change.refine is not None:
        raise ValueError(
            "learn_masks=True does not go with refine=True, which finds a mask for "
            "each sample. Set one of them to False."
        )
