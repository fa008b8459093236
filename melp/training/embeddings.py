"""Measures of embeddings: spread, alignment and uniformity of a batch; retrieval in a whole split."""

import torch

CHUNK = 1024  # rows whose similarities with all others are in memory at a time


def embedding_metrics(ecg: torch.Tensor, text: torch.Tensor) -> dict[str, float]:
    """Describes pairs of L2-normalised embeddings, (pairs, dim) each.

    `spread`: root mean square distance from the mean, 0 where all are one point, at most 1; `alignment`: mean
    squared distance of a pair, `uniformity`: logarithm of the mean Gaussian potential over all pairs, 0 where all are
    one point (Wang and Isola, ICML 2020, arXiv 2005.10242).
    """
    ecg, text = ecg.detach().float(), text.detach().float()
    metrics = {"alignment": (ecg - text).square().sum(dim=1).mean()}
    for name, embeds in (("ecg", ecg), ("text", text)):
        metrics[f"{name}_spread"] = (1 - embeds.mean(dim=0).square().sum()).clamp(min=0).sqrt()
        metrics[f"{name}_uniformity"] = torch.stack(
            [torch.cdist(chunk, embeds).square().mul(-2).exp().mean(dim=1).sum() for chunk in embeds.split(CHUNK)]
        ).sum().div(len(embeds)).log()  # fmt: skip
    values = torch.stack(list(metrics.values())).tolist()  # one wait for the device, not five
    return dict(zip(metrics, values, strict=True))


def recall(ecg: torch.Tensor, text: torch.Tensor, report_ids: torch.Tensor) -> float:
    """Returns how often the most similar is the right one, ECG to report and report to ECG; the mean of both.

    Reports that say the same are one candidate, embedded as the first of them is, as in `evaluate.py retrieval`.

    Args:
        ecg, text: (pairs, dim), L2-normalised; report_ids: (pairs,) equal for reports that say the same.
    """
    _, group = report_ids.unique(return_inverse=True)
    places = torch.arange(len(group), device=group.device)
    first = torch.full_like(group, len(group)).scatter_reduce(0, group, places, "amin")
    hits, text = 0, text[first[group]]
    for queries, candidates in ((ecg, text), (text, ecg)):
        for chunk, ids in zip(queries.float().split(CHUNK), report_ids.split(CHUNK), strict=True):
            best = (chunk @ candidates.float().t()).argmax(dim=1)
            hits += int((report_ids[best] == ids).sum())
    return hits / (2 * len(report_ids))
