"""A generator with edits built in.

Floor 3: see :mod:`panda_sklearn.editing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from panda_sklearn.editing._changes import change_of, check_edits, total_change
from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._editor import LocalEditor
from panda_sklearn.feature_extractor import running_device, tap_of
from panda_sklearn.utils.arithmetic import in_full_precision
from panda_sklearn.utils.arrays import promoted
from panda_sklearn.utils.borrowing import run_eagerly
from panda_sklearn.utils.hooks import replace
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import (
    check_array_like,
    check_flag,
    check_kind,
    check_parameters,
)

__all__ = ["EditedGenerator"]


def _saved_tensors_hooks() -> Any:
    """Through what autograd saves tensors; checkpointing puts its own there."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if top is None else top(True)


class EditedGenerator(nn.Module):
    """A generator with edits built in, as a module like any other.

    Called with latents, it returns edited images. Gradients flow through it to
    latents that require them and, with ``learn_strengths``, to the strengths.

    Parameters
    ----------
    editor : LocalEditor
        The editor of the generator; its extractor says how the generator is called.

    edits : Edit or sequence of Edit
        What to change, the same for all samples.

    refine : bool, default=False
        Whether to refine the parts to each sample. The refined parts count as
        constants: no gradient flows through the refinement.

    learn_strengths : bool, default=False
        Whether ``strengths`` requires gradients.

    Attributes
    ----------
    generator : torch.nn.Module
        The editor's own generator, not a copy: moving this module to a device, or
        changing its mode, does so to that.

    strengths : torch.nn.Parameter of shape (n_edits,)
        The strengths, in the edits' own units.

    Raises
    ------
    TypeError, ValueError
        As ``LocalEditor.edit``; also if a mask or strengths are of single samples.
    RuntimeError
        When called with gradients on, if the generator runs the edited layer under
        activation checkpointing: in the backward pass it would run again, unedited.

    See Also
    --------
    LocalEditor.edit : Edits many latents batch by batch, without gradients.

    Notes
    -----
    Unlike ``LocalEditor.edit`` it is not a guest: it runs the generator in the mode
    that it is in, with whatever noise it draws, and on the device where it is. The
    generator has no hooks between calls. Edits are applied in eager mode, also if the
    generator, or this module, was passed to ``torch.compile``.

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
    vectors: Tensor
    masks: Tensor

    def __init__(
        self,
        editor: LocalEditor,
        edits: Edit | Sequence[Edit],
        *,
        refine: bool = False,
        learn_strengths: bool = False,
    ) -> None:
        super().__init__()
        check_kind("editor", editor, LocalEditor)
        check_flag("learn_strengths", learn_strengths)
        extractor, panda = editor.extractor, editor.decomposition
        shape = extractor.image_shape_
        change = change_of(check_edits(edits), panda, shape, None, refine=refine)
        check_parameters(extractor)
        check_parameters(panda)
        self.generator = extractor.generator
        self.training = self.generator.training
        self._forward = extractor.forward
        self._tap = tap_of(extractor)
        self._change = change
        like = change.terms[0].vector.to(running_device(extractor))
        self.strengths = nn.Parameter(
            torch.stack([term.strength.to(like) for term in change.terms]),
            requires_grad=bool(learn_strengths),
        )
        self.register_buffer(
            "scales", like.new_tensor([term.scale for term in change.terms])
        )
        self.register_buffer(
            "vectors", torch.stack([term.vector.to(like) for term in change.terms])
        )
        self.register_buffer(
            "masks", torch.stack([term.mask.to(like) for term in change.terms])
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Generate edited images.

        Parameters
        ----------
        latents : Tensor of shape (n_samples, ...)
            Latents, on the generator's device and of its type; those with a column of
            classes in float32, for one of the families of
            ``panda_sklearn.generators`` to cast.

        Returns
        -------
        images : Tensor of shape (n_samples, ...)
            What the generator gives, with the edits.

        Raises
        ------
        TypeError, ValueError
            If the latents are no dense tensor of such a shape.
        """
        check_array_like(latents, "latents", "a tensor of shape (n_samples, ...)")
        check_kind("latents", latents, Tensor)
        if torch.compiler.is_compiling():
            return torch.compiler.disable(self._run)(latents)
        return self._run(latents)

    def _run(self, latents: Tensor) -> Tensor:
        """One forward pass, with the edits hooked in for its length."""
        saving = _saved_tensors_hooks()
        given = (latents, self.strengths, *self.generator.parameters())
        differentiates = torch.is_grad_enabled() and any(T.requires_grad for T in given)

        def edit(features: Tensor) -> Tensor:
            if differentiates and (
                not torch.is_grad_enabled() or _saved_tensors_hooks() != saving
            ):
                raise RuntimeError(
                    f"Layer {self._tap.name!r} runs under activation checkpointing, "
                    "other hooks of saved tensors, or without gradients, which the "
                    "generator itself sees to. In the backward pass it would run "
                    "again without the edit, and gradients would be wrong. Turn "
                    "checkpointing off in the generator, or call this module under "
                    "torch.no_grad()."
                )
            return self._edit(features)

        def run() -> Tensor:
            if self._forward is None:
                return self.generator(latents)
            return self._forward(self.generator, latents)

        with Undo() as undo, undo:
            run_eagerly(undo, self.generator)
            return replace(self._tap, edit, run)

    @in_full_precision
    def _edit(self, features: Tensor) -> Tensor:
        """Activations with the edits added."""
        layout = self._change.layout
        maps = promoted(layout.to_maps(features))
        masks: Sequence[Tensor] = self.masks.unbind()
        if self._change.refine is not None:
            masks = self._change.masks(features.detach(), None)
        alphas = (self.strengths * self.scales).unbind()
        added = total_change(maps, self.vectors.unbind(), masks, alphas)
        return layout.from_maps(maps + added)
