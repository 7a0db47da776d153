"""Autograd functions that store less for the backward pass than torch does under autocast, with the same
results.

Three rules. 1. A tensor that autocast would cast is stored once, in that half precision (`dtype`). 2. The
output of a cheap function (layer norm, GELU) is not stored by the layers that read it: they compute it again
through its graph node (`source_of`, `_input`). 3. No (tokens, tokens) matrix is stored, except by
`ProductAttention`, which is used only where it was measured to be faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

from pipeline.models import onednn
from pipeline.models.dropout import drop, keep

aten = torch.ops.aten


def source_of(x: torch.Tensor) -> Any | None:
    """Return the graph node that can compute `x` again, or None."""
    return x.grad_fn if hasattr(x.grad_fn, "remake") else None


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """Return the half precision of autocast on x's device; None without autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def kept_dtype(x: torch.Tensor) -> torch.dtype | None:
    """Return the half precision in which a rewrite stores tensors; None where torch's own layer runs."""
    return None if torch.compiler.is_compiling() else autocast_dtype(x)


class Norm(Function):
    """Layer norm, computed in float32 and returned in `dtype`; its input is stored in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return the norm of x over its last axes, in `dtype`; x, weight and bias as for F.layer_norm."""
        output, mean, rstd = torch.native_layer_norm(x.float(), weight.shape, weight, bias, eps)
        ctx.save_for_backward(x.to(dtype), mean, rstd, weight, bias)
        ctx.eps, ctx.input_dtype, ctx.remake = eps, x.dtype, Norm.remake
        return output.to(dtype)

    @staticmethod
    def remake(ctx: Any) -> torch.Tensor:
        """Compute the output again, in the dtype of the stored input; once for all layers that read it."""
        if not hasattr(ctx, "remade"):
            x, _, _, weight, bias = _opened(ctx)
            ctx.remade = F.layer_norm(x.float(), weight.shape, weight, bias, ctx.eps).to(x.dtype)
        return ctx.remade

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x (in its own dtype), weight and bias (float32)."""
        x, mean, rstd, weight, bias = _opened(ctx)
        wanted = ctx.needs_input_grad[:3]
        grads = aten.native_layer_norm_backward(
            grad.float(), x.float(), weight.shape, mean, rstd, weight, bias, wanted
        )
        _close(ctx)
        # None: the first norm, if only norms are trained
        of_input = grads[0] if grads[0] is None else grads[0].to(ctx.input_dtype)
        return (of_input, *grads[1:], None, None)


class Gelu(Function):
    """Exact GELU. Its input is stored, as torch does.

    Layers that can compute its output again do not store it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Return GELU of x, in x's dtype."""
        ctx.save_for_backward(x)
        ctx.remake = Gelu.remake
        return F.gelu(x)

    @staticmethod
    def remake(ctx: Any) -> torch.Tensor:
        """Compute the output again from the stored input."""
        return F.gelu(*_opened(ctx))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Return the gradient of x."""
        grad_x = aten.gelu_backward(grad, *_opened(ctx))
        _close(ctx)
        return grad_x


class FrozenLinear(Function):
    """x @ weight.T + bias for a frozen weight and bias in the dtype of x. Only the weight is stored."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return (..., out) in the dtype of x (..., in)."""
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of x."""
        (weight,) = ctx.saved_tensors
        return grad @ weight, None, None


class Linear(Function):
    """x @ weight.T + bias in `dtype`, for trained float32 weights.

    Their copies in `dtype` exist only during the product, not until the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        source: Any,
    ) -> torch.Tensor:
        """Return (..., out) in `dtype` of x (..., in).

        `source`: the node that computes x again (see `source_of`); with None x is stored, in `dtype`.
        """
        half = x.to(dtype)
        ctx.save_for_backward(weight, *(() if source else (half,)))
        ctx.source, ctx.input_dtype, ctx.has_bias = source, x.dtype, bias is not None
        return _product(half, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x (in its own dtype), and of weight and bias (float32)."""
        weight, *kept = ctx.saved_tensors
        x = _input(ctx.source, kept)
        grad_x = (grad @ weight.to(grad.dtype)).to(ctx.input_dtype) if ctx.needs_input_grad[0] else None
        grad_bias = grad.flatten(0, -2).sum(0).to(weight.dtype) if ctx.has_bias else None
        return grad_x, _outer(grad, x).to(weight.dtype), grad_bias, None, None


class AdaptedLinear(Function):
    """A frozen linear layer plus its LoRA update, in `dtype`: `x @ weight.T + bias + scale * dropout(x) @
    a.T @ b.T`.

    `a` (rank, in) and `b` (out, rank) are float32. The bias may be trained. All adapters of one x share it;
    of the dropout only the mask is stored, one byte per number. The update is added in place to the output of
    the frozen layer, and so is its part of x's gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        dropout: float,
        dtype: torch.dtype,
        source: Any,
    ) -> torch.Tensor:
        """Return (..., out) in `dtype` of x (..., in). `source` as in `Linear`."""
        half = x.to(dtype)
        dropped, mask = drop(half, dropout) if dropout else (half, None)
        low = F.linear(dropped, a.to(dtype))
        ctx.save_for_backward(weight, a, b, low, mask, *(() if source else (half,)))
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.source, ctx.scale, ctx.dropout, ctx.input_dtype = source, scale, dropout, x.dtype
        output = _product(half, weight, bias)
        output.view(-1, output.shape[-1]).addmm_(low.flatten(0, -2), (b * scale).to(dtype).mT)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, of the bias if it is trained, and of a and b (float32)."""
        weight, a, b, low, mask, *kept = ctx.saved_tensors
        x = _input(ctx.source, kept)
        grad_low = grad @ (b * ctx.scale).to(grad.dtype)
        grad_a = _outer(grad_low, _drop(x, mask, ctx.dropout)).to(a.dtype)
        grad_b = _outer(grad, low).to(b.dtype) * ctx.scale
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x, a = grad @ weight.to(grad.dtype), a.to(grad.dtype)
            if mask is None:
                grad_x.view(-1, grad_x.shape[-1]).addmm_(grad_low.flatten(0, -2), a)
            else:
                grad_x += _drop(grad_low @ a, mask, ctx.dropout)
            grad_x = grad_x.to(ctx.input_dtype)
        grad_bias = None
        if ctx.needs_input_grad[2]:
            grad_bias = grad.flatten(0, -2).sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_x, None, grad_bias, grad_a, grad_b, None, None, None, None


class BiasedAttention(Function):
    """softmax(q k.T * scale + bias) v on the CPU, with a trained bias.

    q, k, v: (B, heads, tokens, width); bias: (1, heads, tokens, tokens). torch has a kernel without (tokens,
    tokens) matrices only for a bias that is not trained. It is used here too, and the gradient of the bias is
    computed image by image: dP = P * (dO v.T - rowsum(dO * O)), as in FlashAttention (Dao et al. 2022,
    arXiv:2205.14135, appendix B).
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Return (B, heads, tokens, width) in the dtype of q."""
        output, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=bias, scale=scale
        )
        ctx.save_for_backward(q, k, v, bias, output, logsumexp)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of q, k, v and bias, each with its own shape and dtype."""
        q, k, v, bias, output, logsumexp = ctx.saved_tensors
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, output, logsumexp, 0.0, False, attn_mask=bias, scale=ctx.scale
        )
        grad_bias = torch.zeros_like(bias[0], dtype=torch.float32)
        for image in range(len(q)):
            scores = (q[image] @ k[image].mT).float().mul_(ctx.scale).add_(bias[0])
            probs = scores.sub_(logsumexp[image].unsqueeze(-1)).exp_()
            inner = (grad[image].float() * output[image].float()).sum(-1, keepdim=True)
            grad_bias += probs.mul_((grad[image] @ v[image].mT).float().sub_(inner))
        return (*grads, grad_bias.unsqueeze(0).to(bias.dtype), None)


class ProductAttention(Function):
    """softmax(q k.T * scale + bias) v by two batched matrix products, in half precision.

    `bias` may be None. q, k, v: (B, heads, tokens, width). The probabilities (B, heads, tokens, tokens) are
    stored for the backward pass, which is three products and one pass over them: dS = P * (dO v.T - rowsum(P
    * dO v.T)). The scale multiplies q and its gradient, which are smaller than the scores.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """Return (B, heads, tokens, width) in the dtype of q."""
        shape = q.shape[:2]
        # q, k and v are views of the projections: copied here once, and not by each product
        q, k, v = (part.flatten(0, 1).contiguous() for part in (q * scale, k, v))
        scores = torch.bmm(q, k.mT).unflatten(0, shape)
        probs = (scores if bias is None else scores.add_(bias)).softmax(-1)
        ctx.save_for_backward(q, k, v, probs)
        ctx.scale, ctx.bias_shape = scale, None if bias is None else bias.shape
        return torch.bmm(probs.flatten(0, 1), v).unflatten(0, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of q, k, v, and of the bias if it is trained."""
        q, k, v, probs = ctx.saved_tensors
        shape, grad = probs.shape[:2], grad.flatten(0, 1).contiguous()
        grad_probs = torch.bmm(grad, v.mT).unflatten(0, shape)
        grad_scores = aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = grad_scores.float().sum_to_size(ctx.bias_shape).to(grad.dtype)
        probs, grad_scores = probs.flatten(0, 1), grad_scores.flatten(0, 1)
        grads = (
            torch.bmm(grad_scores, k).mul_(ctx.scale),
            torch.bmm(grad_scores.mT, q),
            torch.bmm(probs.mT, grad),
        )
        return (*(part.unflatten(0, shape) for part in grads), grad_bias, None)


def _opened(ctx: Any) -> tuple[torch.Tensor, ...]:
    """Return the saved tensors, read only once: activation checkpointing refuses a second read."""
    if not hasattr(ctx, "opened"):
        ctx.opened = ctx.saved_tensors
    return ctx.opened


def _close(ctx: Any) -> None:
    del ctx.opened
    if hasattr(ctx, "remade"):
        del ctx.remade


def _input(source: Any, kept: list[torch.Tensor]) -> torch.Tensor:
    return source.remake(source) if source else kept[0]


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x @ weight.T + bias in x's dtype.

    The result is not a view, as that of `F.linear` is in some versions, so the caller may change it in place.
    """
    bias = None if bias is None else bias.to(x.dtype)
    return aten._unsafe_view(
        onednn.linear(x.flatten(0, -2), weight.to(x.dtype), bias), [*x.shape[:-1], len(weight)]
    )


def _outer(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient (out, in) of a weight, from (..., out) and (..., in)."""
    return grad.flatten(0, -2).mT @ x.flatten(0, -2)


def _drop(x: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    return x if mask is None else keep(x, mask, dropout)
