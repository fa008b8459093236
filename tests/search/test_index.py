"""Hits are the nearest recordings, each patient once, by faiss as without."""

import numpy as np
import pyarrow as pa
import pytest

from melp.search.index import Index


@pytest.mark.parametrize("by_faiss", [False, True])
def test_a_patient_is_shown_once(by_faiss):
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((500, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    query = embeddings[7]
    order = np.argsort(-embeddings @ query)
    patients = [None] * 500
    for row in order[:100]:
        patients[row] = "one"  # of whom the nearest hundred are
    columns = {"path": [f"{row}" for row in range(500)], "patient": pa.array(patients, pa.string())}
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), 8)
    index = Index(pa.table({"embedding": values, **columns}))
    if by_faiss:
        pytest.importorskip("faiss")
        index.use_faiss()
    hits = index.hits(query, 3)
    assert [int(hit["path"]) for hit in hits] == [7, order[100], order[101]]
    assert len(index.hits(query, 1000)) == 401
