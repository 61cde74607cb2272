"""The VLM judge over real HTTP: what it sends, what it makes of replies, and which failures may be tried again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from reward_server.scorers.base import Item, ItemError, Outcome, Scores
from reward_server.scorers.vlm import client
from reward_server.scorers.vlm.scorer import VlmScorer
from reward_server.settings import ScorerSettings
from reward_server.worker.handle import Hello, Worker, WorkerError
from tests.reward_server.serving import free_port
from tests.reward_server.vlm.endpoint import (
    MODEL,
    Endpoint,
    Reply,
    as_json,
    completion,
    image_of,
    question_of,
    serve,
    yes,
)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serve() as served:
        yield served


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts."""
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)


def item(prompt: str = "a cat", seed: int = 0, **metadata: Any) -> Item:
    return Item(np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8), prompt, metadata)


def score(url: str, *items: Item, **options: Any) -> list[Outcome]:
    scorer = VlmScorer(base_url=url, model=MODEL, **options)
    try:
        return scorer(items)
    finally:
        scorer.close()


def error(outcome: Outcome) -> ItemError:
    assert isinstance(outcome, ItemError)
    return outcome


def test_request_carries_the_exact_image_and_asks_for_one_token(endpoint: Endpoint) -> None:
    sent = item("a red cat")
    [outcome] = score(endpoint.url, sent)
    assert isinstance(outcome, Scores)
    assert outcome.score == pytest.approx(0.9)
    [body] = endpoint.bodies
    mime, pixels = image_of(body)
    assert mime == "image/png"
    np.testing.assert_array_equal(pixels, sent.image)
    assert question_of(body) == 'Does this figure show "a red cat"? Please answer yes or no.'
    assert {key: body[key] for key in ("model", "temperature", "max_tokens", "logprobs", "top_logprobs")} == {
        "model": MODEL,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert endpoint.keys == [None]


def test_outcomes_keep_the_order_of_the_items(endpoint: Endpoint) -> None:
    def by_brightness(body: Mapping[str, Any]) -> Reply:
        level = float(image_of(body)[1][0, 0, 0]) / 255
        return Reply(yes(level).body, after_s=0.05 * (1 - level))  # the first item's answer is the last to come

    endpoint.answer = by_brightness
    levels = [51, 102, 204]
    items = [Item(np.full((8, 8, 3), level, dtype=np.uint8), "p", {}) for level in levels]
    assert [o.score for o in score(endpoint.url, *items) if isinstance(o, Scores)] == pytest.approx([0.2, 0.4, 0.8])


def test_jpeg_and_system_message_and_extra_keys(endpoint: Endpoint) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    score(endpoint.url, item(), image_format="jpeg", system="You are strict.", extra_body=extra)
    [body] = endpoint.bodies
    assert image_of(body)[0] == "image/jpeg"
    assert body["messages"][0] == {"role": "system", "content": "You are strict."}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_concurrency_is_used_and_never_exceeded(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: Reply(yes().body, after_s=0.03)
    score(endpoint.url, *[item()] * 12, concurrency=3)
    assert len(endpoint.bodies) == 12
    assert endpoint.most_under_way == 3


@pytest.mark.usefixtures("quick")
def test_a_request_that_backs_off_keeps_its_place(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: as_json({}, 429, Retry_After="0.1") if len(endpoint.bodies) == 1 else yes()
    score(endpoint.url, item("first"), item("second"), concurrency=1)
    asked = ["first" in question_of(body) for body in endpoint.bodies]
    assert asked == [True, True, False]  # an endpoint that asks for a pause is not sent the next question instead


def test_connections_stay_open_between_batches(endpoint: Endpoint) -> None:
    scorer = VlmScorer(base_url=endpoint.url, model=MODEL, concurrency=1)
    for _ in range(3):
        scorer([item()])
    scorer.close()
    assert len(endpoint.ports) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_overloaded_endpoint_is_asked_again(endpoint: Endpoint, status: int) -> None:
    endpoint.answer = lambda body: as_json({"error": "busy"}, status) if len(endpoint.bodies) < 3 else yes()
    [outcome] = score(endpoint.url, item())
    assert isinstance(outcome, Scores)
    assert len(endpoint.bodies) == 3


@pytest.mark.usefixtures("quick")
def test_retry_after_is_obeyed(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: as_json({}, 429, Retry_After="0.3") if len(endpoint.bodies) < 2 else yes()
    started = time.monotonic()
    [outcome] = score(endpoint.url, item())
    assert isinstance(outcome, Scores)
    assert time.monotonic() - started >= 0.3


def test_retry_after_beyond_the_deadline_gives_up_at_once(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: as_json({"error": "quota"}, 429, Retry_After="3600")
    started = time.monotonic()
    [outcome] = score(endpoint.url, item(), timeout_s=30)
    assert (error(outcome).code, error(outcome).retryable) == ("overloaded", True)
    assert time.monotonic() - started < 5
    assert len(endpoint.bodies) == 1


@pytest.mark.usefixtures("quick")
def test_a_dropped_connection_is_tried_again(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: Reply(None) if len(endpoint.bodies) == 1 else yes()
    [outcome] = score(endpoint.url, item())
    assert isinstance(outcome, Scores)


@pytest.mark.usefixtures("quick")
def test_an_endpoint_that_went_away_is_a_retryable_error() -> None:
    with serve() as endpoint:
        scorer = VlmScorer(base_url=endpoint.url, model=MODEL, timeout_s=0.3)
    [outcome] = scorer([item()])
    scorer.close()
    assert (error(outcome).code, error(outcome).retryable) == ("unreachable", True)


def test_a_hanging_answer_ends_with_the_deadline_and_spares_its_batch_mates(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: Reply(yes().body, after_s=3.0 if "slow" in question_of(body) else 0.0)
    started = time.monotonic()
    outcomes = score(endpoint.url, item("a"), item("slow"), item("b"), timeout_s=0.5)
    assert time.monotonic() - started < 2
    assert isinstance(outcomes[0], Scores) and isinstance(outcomes[2], Scores)
    assert (error(outcomes[1]).code, error(outcomes[1]).retryable) == ("timeout", True)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
def test_a_refusal_is_final_and_asked_only_once(endpoint: Endpoint, status: int) -> None:
    endpoint.answer = lambda body: as_json({"error": {"message": "image too large"}}, status)
    [outcome] = score(endpoint.url, item())
    assert (error(outcome).code, error(outcome).retryable) == ("refused", False)
    assert "image too large" in error(outcome).message and str(status) in error(outcome).message
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b'{"choices": [{"message": {"content": "Ye'),
        as_json({"choices": []}),
        as_json({"choices": [{"message": {"content": ["a", "list"]}}]}),
        as_json({"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes"}]}}]}),
        as_json([]),
    ],
)
def test_a_garbled_reply_is_a_retryable_error(endpoint: Endpoint, reply: Reply) -> None:
    endpoint.answer = lambda body: reply
    [outcome] = score(endpoint.url, item())
    assert (error(outcome).code, error(outcome).retryable) == ("bad_reply", True)


def test_missing_logprobs_and_other_words_are_lasting_errors(endpoint: Endpoint) -> None:
    replies = {"none": completion("Yes"), "words": completion("The", {"The": 0.96, "Yes": 0.03, "no": 0.01})}
    endpoint.answer = lambda body: next((r for word, r in replies.items() if word in question_of(body)), yes())
    outcomes = score(endpoint.url, item("none"), item("words"), item("fine"))
    assert (error(outcomes[0]).code, error(outcomes[0]).retryable) == ("no_logprobs", False)
    assert (error(outcomes[1]).code, error(outcomes[1]).retryable) == ("unparsable", False)
    assert "0.04" in error(outcomes[1]).message and "'The'" in error(outcomes[1]).message
    assert isinstance(outcomes[2], Scores)


def test_one_failed_question_costs_the_item_its_score_and_a_lasting_error_is_the_one_told(endpoint: Endpoint) -> None:
    def answer(body: Mapping[str, Any]) -> Reply:
        if "first" in question_of(body):
            return as_json({}, 429, Retry_After="999")
        return as_json({"error": "bad"}, 400) if "second" in question_of(body) else yes()

    endpoint.answer = answer
    both = item(vqa_list=[["first?", "Yes"], ["second?", "Yes"], ["third?", "Yes"]])
    outcomes = score(endpoint.url, both, item(vqa_list=[["third?", "Yes"]]), preset="soft_tifa")
    assert error(outcomes[0]).code == "refused"
    assert isinstance(outcomes[1], Scores)


def test_bad_metadata_is_that_items_error_and_nothing_is_sent_for_it(endpoint: Endpoint) -> None:
    outcomes = score(endpoint.url, item(), item(vqa_list=[["Is it red?", "Yes"]]), preset="soft_tifa")
    assert error(outcomes[0]).code == "bad_metadata" and "vqa_list" in error(outcomes[0]).message
    assert isinstance(outcomes[1], Scores)
    assert len(endpoint.bodies) == 1


def test_no_items_ask_nothing(endpoint: Endpoint) -> None:
    assert score(endpoint.url) == []


@pytest.mark.parametrize(
    ("preset", "reply"),
    [
        ("vqascore", yes()),
        ("soft_tifa", yes()),
        ("unifiedreward", completion("Alignment Score (1-5): 3\nCoherence Score (1-5): 4\nStyle Score (1-5): 5")),
        ("unifiedreward_final", completion("Final Score: 4")),
    ],
)
def test_the_warm_up_example_asks_the_endpoint(endpoint: Endpoint, preset: str, reply: Reply) -> None:
    endpoint.answer = lambda body: reply
    scorer = VlmScorer(base_url=endpoint.url, model=MODEL, preset=preset)
    prompt, metadata = scorer.example()
    [outcome] = scorer([Item(np.full((64, 64, 3), 128, dtype=np.uint8), prompt, metadata)])
    scorer.close()
    assert isinstance(outcome, Scores)
    assert len(endpoint.bodies) == 1


def test_in_a_worker_the_warm_up_asks_the_endpoint_and_its_failure_is_the_workers(endpoint: Endpoint) -> None:
    def start(**options: Any) -> Hello:
        target = "reward_server.scorers.vlm.scorer:VlmScorer"
        settings = ScorerSettings(target, options={"base_url": endpoint.url, "model": MODEL, **options})
        worker = Worker("judge", settings, "cpu", max_pixels=1 << 16)
        try:
            return worker.start()
        finally:
            worker.kill()

    assert start().metrics == ("p_no", "p_yes")
    assert image_of(endpoint.bodies[0])[1].tolist() == np.full((64, 64, 3), 128).tolist()
    endpoint.answer = lambda body: completion("Hm", {"Hm": 1.0})
    with pytest.raises(WorkerError, match="yes and no have probability 0 together"):
        start()
    with pytest.raises(WorkerError, match="it serves judge-7b, lora-1"):
        start(model="gpt-9")


def test_unknown_model_lists_the_served_ones(endpoint: Endpoint) -> None:
    with pytest.raises(RuntimeError, match=r"does not serve 'gpt-9'; it serves judge-7b, lora-1"):
        VlmScorer(base_url=endpoint.url, model="gpt-9")


def test_forgotten_version_in_the_address_is_named(endpoint: Endpoint) -> None:
    with pytest.raises(RuntimeError, match=r"404.*usually ends in /v1"):
        VlmScorer(base_url=endpoint.url.removesuffix("/v1"), model=MODEL)


def test_nobody_there_says_how_to_start_one() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ConnectError.*vllm serve.*wait_s"):
        VlmScorer(base_url=f"http://127.0.0.1:{free_port()}/v1", model=MODEL)


@pytest.mark.usefixtures("quick")
def test_wait_s_waits_for_an_endpoint_that_is_loading(endpoint: Endpoint) -> None:
    ready, endpoint.models = endpoint.models, as_json({}, 503)
    started = time.monotonic()

    def become_ready() -> None:
        time.sleep(0.2)
        endpoint.models = ready

    threading.Thread(target=become_ready).start()
    VlmScorer(base_url=endpoint.url, model=MODEL, wait_s=10).close()
    assert 0.2 <= time.monotonic() - started < 5
    assert endpoint.model_calls > 1


def test_the_key_is_sent_but_never_shown(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret\n")
    endpoint.answer = lambda body: as_json({"error": "quota of sk-secret is used up"}, 400)
    with caplog.at_level(logging.DEBUG):
        scorer = VlmScorer(base_url=endpoint.url, model=MODEL, api_key_env="JUDGE_KEY")
        [outcome] = scorer([item()])
        scorer.close()
    assert endpoint.keys == ["Bearer sk-secret"]
    assert "quota of *** is used up" in error(outcome).message
    assert "sk-secret" not in caplog.text + str(scorer.fingerprint()) + repr(scorer.client)


def test_a_missing_key_and_a_refused_one_name_the_variable(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match="export JUDGE_KEY="):
        VlmScorer(base_url=endpoint.url, model=MODEL, api_key_env="JUDGE_KEY")
    endpoint.models = as_json({"error": "no key"}, 401)
    with pytest.raises(RuntimeError, match="api_key_env"):
        VlmScorer(base_url=endpoint.url, model=MODEL)


def test_proxies_of_the_environment_are_used_only_if_asked_for(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    VlmScorer(base_url=endpoint.url, model=MODEL).close()
    with pytest.raises(RuntimeError, match="ConnectError"):
        VlmScorer(base_url=endpoint.url, model=MODEL, trust_env=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000/v1"}, "expected something like http://localhost:8000/v1"),
        ({"base_url": "http://me:pass@host/v1"}, "api_key_env"),
        ({"concurrency": 0}, "at least one"),
        ({"image_format": "bmp"}, "png, jpeg, webp"),
        ({"preset": "vqa_score"}, "Did you mean 'vqascore'"),
        ({"fields": ["x"]}, "preset 'vqascore'.*its options are template, top_logprobs, min_mass"),
        ({"preset": "rubric"}, "missing.*its options are template, fields"),
        ({"extra_body": {"temperature": 1}}, "extra_body sets temperature"),
        ({"extra_body": {"max_tokens": 9}}, "extra_body sets max_tokens"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(options: Mapping[str, Any], message: str) -> None:
    given: dict[str, Any] = {"base_url": f"http://127.0.0.1:{free_port()}/v1", "model": MODEL, **options}
    with pytest.raises(ValueError, match=message):
        VlmScorer(**given)


def test_fingerprint_follows_what_changes_scores_and_nothing_else(endpoint: Endpoint) -> None:
    def fingerprint(url: str = endpoint.url, **options: Any) -> Mapping[str, str]:
        scorer = VlmScorer(base_url=url, model=MODEL, **options)
        scorer.close()
        return scorer.fingerprint()

    plain = fingerprint()
    assert plain["model"] == MODEL and plain["model_root"] == "org/judge"
    with serve() as other:
        assert fingerprint(other.url, concurrency=2, timeout_s=5.0) == plain
    changed = [
        fingerprint(template="Is this {prompt}?"),
        fingerprint(min_mass=0.5),
        fingerprint(image_format="jpeg"),
        fingerprint(system="Be strict."),
        fingerprint(extra_body={"seed": 1}),
        fingerprint(preset="soft_tifa"),
    ]
    assert len({str(f) for f in [plain, *changed]}) == 7
