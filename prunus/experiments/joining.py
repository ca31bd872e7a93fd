"""Requests of an experiment for several networks, joined for its page and its claims."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from prunus.experiments.experiment import Experiment
from prunus.experiments.rows import finished_subset, latest_request, num_runs
from prunus.runs.executors.run_task import LogFn
from prunus.runs.requests import Request, RequestedRun
from prunus.runs.store import Store

NUMERICS = {"backend", "autocast"}
"""The settings that decide how a training is computed, not how much: results differ by rounding and random draws."""
SAME_SIZE = {"network", *NUMERICS}
"""The settings that can be changed without changing the size."""


def requests_to_draw(experiment: Experiment, store: Store, size: str | None, log: LogFn) -> list[Request]:
    """Find the requests to draw on one page: the latest one, and others for the networks that it lacks.

    Args:
        experiment: The experiment.
        store: Where the runs are.
        size: "smoke", "default" or "full"; None means the largest size with a finished run.
        log: Called as in `latest_request`.

    Returns:
        The request of `latest_request`. Then, for networks of which it has no finished run, the latest finished request
        of the same size, or the latest with finished runs of them, or else the latest, whose settings differ in those
        of SAME_SIZE only. Each network is in one of them.

    Raises:
        StoreError: No run of the experiment, in that size, is finished.
    """
    latest = latest_request(store, experiment.name, size, log)
    alike = [
        request
        for request in reversed(store.requests())
        if request.name == latest.name and _other_settings(request) == _other_settings(latest)
    ]
    pairs = [(request, finished_subset(store, request)) for request in alike]
    pairs.sort(key=lambda pair: (pair[0] != latest, num_runs(pair[0]) > num_runs(pair[1])))
    request_of: dict[str, Request] = {}
    for request, counted in (*pairs, *zip(alike, alike, strict=True)):
        for network in networks_of(experiment, counted):
            request_of.setdefault(network, request)
    return [
        _of_networks(experiment, request, {name for name, of in request_of.items() if of.number == number})
        for number, request in {request.number: request for request in request_of.values()}.items()
    ]


def join_requests(experiment: Experiment, requests: Sequence[Request]) -> Request:
    """Join requests of several networks; every run is labeled with its network if the experiment has several.

    Args:
        experiment: The experiment.
        requests: Requests of one size, at least one. The runs with a label, of which one request may have several, take
            the place of those with the same label in an earlier request.

    Returns:
        The runs of all requests, network by network, with the settings that all requests have in common.
    """
    by_label: dict[tuple[tuple[str, Any], ...], list[RequestedRun]] = {}
    for request in requests:
        of_request: dict[tuple[tuple[str, Any], ...], list[RequestedRun]] = {}
        for entry in request.entries:
            network = {"group": network_of_run(experiment, request, entry.label)}
            label = {**network, **entry.label} if len(experiment.networks) > 1 else dict(entry.label)
            of_request.setdefault(tuple(sorted(label.items())), []).append(replace(entry, label=label))
        by_label |= of_request
    entries = [entry for of_label in by_label.values() for entry in of_label]
    order = [*experiment.networks]
    present = {network for request in requests for network in networks_of(experiment, request)}
    order += sorted(present.difference(order))
    common = set.intersection(*(set(request.settings.items()) for request in requests))
    settings = dict(sorted(common))
    if present != set(experiment.networks):
        settings["network"] = ",".join(name for name in order if name in present)
    by_network = sorted(entries, key=lambda entry: order.index(entry.label.get("group", order[0])))
    return replace(requests[0], settings=settings, entries=tuple(by_network))


def network_of_run(experiment: Experiment, request: Request, label: Mapping[str, Any]) -> str:
    """Return the network of a run.

    Args:
        experiment: The experiment.
        request: The request of the run.
        label: The label of the run in it; without "group", the request has only one network.

    Returns:
        The name of the network.
    """
    return str(label.get("group") or experiment.networks_and_settings(request.settings)[0][0])


def numerics_of(request: Request) -> dict[str, str]:
    """Return the settings in NUMERICS that a request changes."""
    return {key: str(request.settings[key]) for key in sorted(NUMERICS & request.settings.keys())}


def networks_of(experiment: Experiment, request: Request) -> set[str]:
    """Return the networks of the runs of a request.

    Args:
        experiment: The experiment.
        request: The request.

    Returns:
        The names of the networks; empty for a request without runs.
    """
    return {network_of_run(experiment, request, entry.label) for entry in request.entries}


def _of_networks(experiment: Experiment, request: Request, networks: Set[str]) -> Request:
    """The request with only the runs of these networks, and with their names as the setting `network`."""
    if networks == networks_of(experiment, request):
        return request
    entries = [e for e in request.entries if network_of_run(experiment, request, e.label) in networks]
    names = [name for name in experiment.networks_and_settings(request.settings)[0] if name in networks]
    settings = {**request.settings, "network": ",".join(names)}
    return replace(request, entries=tuple(entries), settings=settings)


def _other_settings(request: Request) -> dict[str, Any]:
    """The settings that are not in SAME_SIZE."""
    return {key: value for key, value in request.settings.items() if key not in SAME_SIZE}
