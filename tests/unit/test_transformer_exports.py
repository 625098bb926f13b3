"""Transformers as PyTorch exports those of Hugging Face: their embeddings, masks and heads, in several operator sets."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
from pg_distill.frame import Feature, Frame, Strings
from pg_distill.onnx_model.approve import approve
from pg_distill.onnx_model.tokens import attach
from tiny_transformer import POSITIONS, Transformer, reviews, tokenizer, vocabulary

pytestmark = pytest.mark.slow  # PyTorch takes seconds to import
pytest.importorskip("tokenizers")
torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

CLASSES = ("red", "green", "blue")
WIDTH, HEADS, LAYERS = 32, 2, 2
TOKENS = 24  # each number of them is walked


class Embedding(torch.nn.Module):  # type: ignore[misc]
    """BERT's: words, kinds, and places out of a buffer of positions; or RoBERTa's, which count what is no padding."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.counts = counts
        self.word = torch.nn.Embedding(len(vocabulary()), WIDTH)
        self.place = torch.nn.Embedding(POSITIONS + 2, WIDTH)
        self.kind = torch.nn.Embedding(2, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.register_buffer("positions", torch.arange(POSITIONS).expand((1, -1)))

    def forward(self, ids: Any, kinds: Any) -> Any:
        if self.counts:
            mask = ids.ne(0).int()
            places = (torch.cumsum(mask, dim=1).type_as(mask) * mask).long() + 1
            return self.norm(self.word(ids) + self.place(places))
        return self.norm(self.word(ids) + self.kind(kinds) + self.place(self.positions[:, : ids.size()[1]]))


class Layer(torch.nn.Module):  # type: ignore[misc]
    """Attention, written out or PyTorch's own, and two linear layers."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own
        self.q, self.k, self.v, self.o = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.back = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)
        self.norm, self.norm_2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)

    def forward(self, x: Any, mask: Any) -> Any:
        q, k, v = (
            part(x).view((*x.size()[:-1], HEADS, x.size(-1) // HEADS)).permute(0, 2, 1, 3)
            for part in (self.q, self.k, self.v)
        )
        if self.own:
            seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = torch.matmul(q, k.transpose(-1, -2)) / (q.size(-1) ** 0.5) + mask
            seen = torch.matmul(torch.nn.functional.softmax(scores, dim=-1), v)
        seen = seen.permute(0, 2, 1, 3).contiguous()
        x = self.norm(self.o(seen.view((*seen.size()[:-2], -1))) + x)
        return self.norm_2(self.back(torch.nn.functional.gelu(self.wide(x))) + x)


class Classifier(torch.nn.Module):  # type: ignore[misc]
    """A head on the first token's vector."""

    def __init__(self, counts: bool, own: bool) -> None:
        super().__init__()
        self.embedding = Embedding(counts)
        self.layers = torch.nn.ModuleList(Layer(own) for _ in range(LAYERS))
        self.pooler, self.head = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, len(CLASSES))

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        x = self.embedding(input_ids, token_type_ids)
        length = input_ids.size(1)
        seen = attention_mask[:, None, None, :].expand(input_ids.size(0), 1, length, length).to(x.dtype)
        mask = (1.0 - seen).masked_fill((1.0 - seen).to(torch.bool), torch.finfo(x.dtype).min)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


@pytest.mark.parametrize(
    ("counts", "own", "opset"), [(False, False, 14), (False, True, 17), (True, False, 20), (True, True, 14)]
)
def test_an_export_predicts_as_pytorch(counts: bool, own: bool, opset: int) -> None:
    torch.manual_seed(0)
    module = Classifier(counts, own).eval()
    ids = torch.randint(5, len(vocabulary()), (2, 7))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (ids, torch.ones_like(ids), torch.zeros_like(ids)), file, dynamo=False, opset_version=opset,
            input_names=names, output_names=["logits"],
            dynamic_axes={**{name: {0: "batch", 1: "sequence"} for name in names}, "logits": {0: "batch"}},
        )  # fmt: skip
    made = Transformer(file.getvalue(), tokenizer(), CLASSES)
    texts = [*reviews(8)[0], "", "great " * 200]
    rows = Frame((Feature("body", "string"),), {"body": Strings.from_values(list(texts))})
    for model in (made, made.quantised()) if opset == 17 else (made,):
        found = approve(
            attach(model.artifact, model.tokenizer), rows=rows, max_tokens=TOKENS, classes=CLASSES
        )
        assert (found.signature.output.form, found.signature.task) == ("logits", "multiclass")
        expected = []
        for text in texts:
            tokens = torch.tensor([model.tokens(text, TOKENS)])
            with torch.no_grad():
                out = module(tokens, torch.ones_like(tokens), torch.zeros_like(tokens))
            expected.append(torch.softmax(out[0], 0).numpy())
        assert np.abs(found.outputs - expected).max() < (1e-5 if model is made else 0.05)
