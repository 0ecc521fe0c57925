"""Fits the weights of `weftd/models/extractive/evidence.py`, and says how well they do on questions left out.

    python bench/fit_answerable.py CMRC.json HOTPOT.json [MUSIQUE.json]

The first file of each language is what is fitted to; further ones only show how the result carries over.
Each question is searched for twice (five passages; BM25 and, in English, MiniLM, fused by reciprocal rank):
with the documents that hold its answer and without them. A logistic regression with an L2 penalty tells the
two apart. The bias is then set so that the share `ANSWERED` of the answerable is answered. English questions
serve twice, once as they are and once as if no name could be recognised in them.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weft.v1.common_pb2 import Message, Reference
from weftd.evaluation.questions import Document, read_questions
from weftd.inference.onnx_embedder import open_embedder
from weftd.inference.port import Embedder
from weftd.models.extractive.evidence import FEATURES, Evidence, Profile, gather
from weftd.models.extractive.model import shortlist_cosines
from weftd.models.extractive.question import read_question
from weftd.models.extractive.ranking import rank
from weftd.models.extractive.units import take_apart
from weftd.text.tokens import search_tokens

# English questions are fewer, which fixes a threshold less well; those without a name are the most unlike the
# questions that people ask of their own documents, where declining too much is the greater harm.
ANSWERED = {"chinese": 0.96, "named": 0.97, "plain": 0.98}
PENALTY = 1.0
FOLDS = 5
TOP = 5
K1, B = 1.2, 0.75

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass
class Row:
    """`group`: rows of one group are never on both sides of a fold."""

    source: str
    group: int
    answerable: bool
    evidence: Evidence
    cosine: float | None


class Search:
    """BM25 and dense search in memory."""

    def __init__(self, documents: list[Document], vectors: npt.NDArray[np.float32] | None) -> None:
        self.documents, self.vectors = documents, vectors
        counts = [collections.Counter(search_tokens(f"{d.name}\n{d.text}")) for d in documents]
        lengths = np.array([sum(count.values()) for count in counts])
        self.norm = K1 * (1 - B + B * lengths / lengths.mean())
        self.postings: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        for number, count in enumerate(counts):
            for token, times in count.items():
                self.postings[token].append((number, times))

    def __call__(
        self, question: str, vector: npt.NDArray[np.float32] | None, exclude: frozenset[str]
    ) -> list[Reference]:
        scores = np.zeros(len(self.documents))
        for token in set(search_tokens(question)):
            found = self.postings.get(token, [])
            idf = math.log(1 + (len(scores) - len(found) + 0.5) / (len(found) + 0.5))
            for number, times in found:
                scores[number] += idf * times * (K1 + 1) / (times + self.norm[number])
        routes = [scores] if vector is None or self.vectors is None else [scores, self.vectors @ vector]
        fused: collections.Counter[int] = collections.Counter()
        for route in routes:
            kept = [n for n in np.argsort(-route, kind="stable") if self.documents[n].key not in exclude]
            for place, number in enumerate(kept[:100], 1):
                fused[int(number)] += 1 / (60 + place)
        best = [self.documents[number] for number, _ in fused.most_common(TOP)]
        return [Reference(id=i, name=d.name, content=d.text) for i, d in enumerate(best, 1)]


async def rows(path: Path, embedder: Embedder) -> list[Row]:
    data = read_questions(path)
    found: list[Row] = []
    dense = all(embedder.supports(case.question) for case in data.cases[:20])
    vectors = await embedder.embed([f"{d.name}\n{d.text}" for d in data.documents]) if dense else None
    asked = await embedder.embed([case.question for case in data.cases]) if dense else None
    search = Search(data.documents, vectors)
    groups = {key: number for number, key in enumerate(sorted({min(case.gold) for case in data.cases}))}
    for number, case in enumerate(data.cases):
        for exclude in (frozenset[str](), case.gold):
            references = search(case.question, None if asked is None else asked[number], exclude)
            question = read_question([Message(role="user", content=case.question)])
            passages = [take_apart(i, reference) for i, reference in enumerate(references)]
            cosine = None
            if dense:
                cosines = await shortlist_cosines(embedder, question, references, rank(question, passages))
                cosine = max(cosines.values(), default=0.0)
            group = groups[min(case.gold)]
            found.append(Row(path.stem, group, not exclude, gather(question, passages), cosine))
    return found


def fit(x: Floats, y: Floats) -> Floats:
    """Weights and bias of a penalised logistic regression, by Newton's method on standardised features."""
    mean, scale = x.mean(0), x.std(0) + 1e-9
    z = np.c_[(x - mean) / scale, np.ones(len(x))]
    penalty = np.diag([PENALTY] * x.shape[1] + [0.0])
    w = np.zeros(z.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-z @ w))
        w -= np.linalg.solve(z.T @ (z * (p * (1 - p))[:, None]) + penalty, z.T @ (p - y) + penalty @ w)
    plain = w[:-1] / scale
    return np.append(plain, w[-1] - plain @ mean)


def with_threshold(w: Floats, x: Floats, y: Floats, answered: float) -> Floats:
    """`w` with the bias at which `ANSWERED` of the answerable have 0 or more."""
    scores = x @ w[:-1] + w[-1]
    return np.append(w[:-1], w[-1] - np.quantile(scores[y == 1], 1 - answered))


def report(profile: Profile, chosen: list[Row]) -> None:
    names = dict.fromkeys(row.source for row in chosen)
    dense = profile.endswith("_dense")
    x = np.array([row.evidence.features(row.cosine if dense else None) for row in chosen])
    y = np.array([float(row.answerable) for row in chosen])
    source = np.array([row.source for row in chosen])
    fitted = source == next(iter(names))
    answered = ANSWERED[profile.removesuffix("_dense")]
    final = with_threshold(fit(x[fitted], y[fitted]), x[fitted], y[fitted], answered)
    values = ", ".join(f"{value:.2f}" for value in final)
    print(f'    "{profile}": ({values}),  # {", ".join(FEATURES[profile])}')
    scores = x @ final[:-1] + final[-1]
    groups = np.array([row.group if row.source == next(iter(names)) else -1 for row in chosen])
    shuffled = np.random.default_rng(0).permutation(np.unique(groups[fitted]))
    for fold in range(FOLDS):
        out = np.isin(groups, shuffled[fold::FOLDS])
        kept = fitted & ~out
        w = with_threshold(fit(x[kept], y[kept]), x[kept], y[kept], answered)
        scores[out] = x[out] @ w[:-1] + w[-1]
    for name in names:
        yes, no = scores[(source == name) & (y == 1)], scores[(source == name) & (y == 0)]
        auc = (yes[:, None] > no[None]).mean() + 0.5 * (yes[:, None] == no[None]).mean()
        rates = f"answered {(yes >= 0).mean():.3f}, declined {(no < 0).mean():.3f}, AUC {auc:.3f}"
        print(f"        left out, {name}: {rates}")


async def main(paths: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as cache:
        embedder = open_embedder(None, Path(cache), threads=2)
        all_rows = [row for path in paths for row in await rows(path, embedder)]
        await embedder.close()
    show(all_rows)


def show(all_rows: list[Row]) -> None:
    """Prints the rows of `WEIGHTS`."""
    chinese = [row for row in all_rows if row.evidence.chinese]
    english = [row for row in all_rows if row.cosine is not None and not row.evidence.chinese]
    named = [row for row in english if row.evidence.named]
    plain = [
        dataclasses.replace(row, evidence=dataclasses.replace(row.evidence, named=False)) for row in english
    ]
    chosen: dict[Profile, list[Row]] = {
        "chinese": chinese,
        "named": named,
        "named_dense": named,
        "plain": plain,
        "plain_dense": plain,
    }
    for profile, its_rows in chosen.items():
        if its_rows:
            report(profile, its_rows)


if __name__ == "__main__":
    asyncio.run(main([Path(name) for name in sys.argv[1:]]))
