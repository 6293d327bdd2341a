"""What is exported: modules of one decode step around a Hugging Face model, with its caches as buffers."""

from typing import Any

import torch


class DecodeStep(torch.nn.Module):
    """forward(input_ids [1, T], positions [T]) → logits, with caches as buffers."""

    def __init__(self, model: Any, context: int) -> None:
        super().__init__()
        self.model, self.context = model, context
        number = model.config.num_hidden_layers
        self.caches = [_cache_shapes(model.config, i, context) for i in range(number)]
        for cache in self.caches:
            self._hold(cache)

    def _hold(self, cache: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        dtype = next(iter(self.model.parameters())).dtype
        for name, shape in cache.values():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype), persistent=False)

    def _held(self, cache: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
        return {kind: getattr(self, name) for kind, (name, _) in cache.items()}

    def _mask(self, positions: Any) -> Any:
        """What a token sees: by kind of layer, if there are several; a window without kinds is every layer's."""
        columns = torch.arange(self.context, device=positions.device)
        full = (columns[None, :] <= positions[:, None])[None, None]
        c = self.model.config
        window, kinds = getattr(c, "sliding_window", None), getattr(c, "layer_types", None)
        if not window or "sliding_attention" not in (kinds or ["sliding_attention"]):
            return self._additive(full)
        near = columns[None, :] > (positions - window)[:, None]
        slid = self._additive(full & near[None, None])
        if not kinds:
            return slid
        return {"full_attention": self._additive(full), "sliding_attention": slid}

    def _additive(self, mask: Any) -> Any:
        """A mask as the model's attention takes it: spelled out, it adds it to the scores."""
        if not capped(self.model.config):
            return mask
        lowest = torch.finfo(next(iter(self.model.parameters())).dtype).min
        return torch.where(mask, 0.0, lowest)

    def _inputs(self, input_ids: Any, positions: Any) -> dict[str, Any]:
        return {
            "input_ids": input_ids,
            "position_ids": positions[None],
            "attention_mask": self._mask(positions),
            "past_key_values": _cache([self._held(c) for c in self.caches], positions),
            "use_cache": True,
        }

    def forward(self, input_ids: Any, positions: Any) -> Any:
        """The step."""
        return self.model(**self._inputs(input_ids, positions)).logits


def capped(config: Any) -> bool:
    """Whether a model's attention caps its scores."""
    return bool(getattr(config, "attn_logit_softcapping", None))


class DraftStep(DecodeStep):
    """The same, and a layer that drafts the token behind the chosen one: (logits, draft logits)."""

    def __init__(self, model: Any, draft: Any, context: int) -> None:
        super().__init__(model, context)
        self.mtp = draft
        self.draft_cache = _cache_shapes(model.config, len(self.caches), context)
        self._hold(self.draft_cache)

    def forward(self, input_ids: Any, positions: Any) -> Any:
        """The step."""
        base = self.model.get_decoder()
        hidden = base(**self._inputs(input_ids, positions)).last_hidden_state
        logits = self.model.lm_head(hidden)
        chosen = base.embed_tokens(logits.argmax(-1))
        drafted = self.mtp.layers[0](
            chosen,
            hidden,
            position_embeddings=base.rotary_emb(chosen, position_ids=positions[None]),
            attention_mask=self._mask(positions),
            position_ids=positions[None],
            past_key_values=_cache([self._held(self.draft_cache)], positions),
        )
        return logits, self.model.lm_head(drafted)


def _cache(layers: list[dict[str, Any]], positions: Any) -> Any:
    """A transformers cache over a step's buffers, by layer: "keys", "values", and "index" of a sparse layer."""
    from transformers.cache_utils import Cache, StaticLayer

    class BufferLayer(StaticLayer):
        """A layer's cache in buffers of the wrapper."""

        def __init__(self, buffers: dict[str, Any]) -> None:
            super().__init__(buffers["keys"].shape[2])
            self.keys, self.values = buffers["keys"], buffers["values"]
            self.index: Any = buffers.get("index")
            self.is_initialized = True
            self.device, self.dtype = self.keys.device, self.keys.dtype

        def update(self, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            self.keys.index_copy_(2, positions, keys)
            self.values.index_copy_(2, positions, values)
            return self.keys, self.values

        def update_indexer(self, keys: Any, *_: Any, **__: Any) -> Any:
            self.index.index_copy_(1, positions, keys)
            return self.index

        def get_seq_length(self, *_: Any) -> int:
            return 0

    return Cache(layers=[BufferLayer(layer) for layer in layers])


def _cache_shapes(config: Any, layer: int, context: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The buffers of a layer's cache, as _cache has them: (name, shape)."""
    rank = getattr(config, "kv_lora_rank", None)
    if not rank:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        shape = (1, heads, context, size)
        return {"keys": (f"k_cache_{layer}", shape), "values": (f"v_cache_{layer}", shape)}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "keys": (f"latent_cache_{layer}", (1, 1, context, rank)),
        "values": (f"rope_cache_{layer}", (1, 1, context, config.qk_rope_head_dim)),
    }
    kinds = getattr(config, "indexer_types", None)
    if getattr(config, "index_topk", None) and (kinds is None or kinds[layer] == "full"):
        shapes["index"] = (f"index_cache_{layer}", (1, context, config.index_head_dim))
    return shapes
