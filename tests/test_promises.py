"""What the documents and docstrings promise, and the test that holds each promise.

A sentence that says any, every, never, always, the same, exactly or bitwise is here, or says less. Who rewords one
looks at its test.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A document; words of its sentences; and where in tests/ each is held.
PROMISES = """
README.md
  the same result, up to rounding
    core/execution/test_engine.py::test_every_executor_computes_the_same
  goes on with an interrupted run, bitwise as if it had not been
    benchmarks/test_quickstart.py::test_a_run_that_is_killed_goes_on_where_it_was_saved
  Whatever else is in a directory is never touched
    experiment/test_run_directory.py::test_overwriting_deletes_what_the_run_has_written_and_nothing_else
  it goes on, with the same bits
    experiment/test_killed.py::test_a_killed_run_ends_with_the_same_bits
  cannot depend on how the cohort is cut
    algorithms/test_laws.py::test_the_order_of_clients_changes_nothing
  Only federated operators move them
    core/language/test_errors.py
  one all-reduce per pass
    core/execution/test_engine.py::test_a_pass_has_one_collective
  makes runs bitwise equal
    algorithms/test_laws.py::test_resuming_after_any_round_is_bitwise_equal
  is not finite is left out and counted
    algorithms/test_fed_avg.py::test_a_non_finite_client_is_left_out_and_counted
  in the order of the cohort however it runs
    core/execution/test_chunks.py::test_results_come_in_the_order_of_the_cohort
  each ends with the name of what differs and where
    core/execution/test_hosts.py::test_processes_that_disagree_are_refused_and_told_in_what
  within 20 seconds
    benchmarks/test_processes.py::test_when_one_process_ends_the_other_ends_and_says_why
  plans, reads and computes only the clients of its own devices
    core/execution/test_hosts.py::test_each_process_plans_its_own_clients_only
  is on every machine
    core/execution/test_hosts.py::test_all_processes_have_the_same_bits
  lists what a round sends, in bits, without running it
    core/language/test_traffic.py
  for any number of clients, into bytes
    core/execution/test_export.py
  written a client at a time, in constant memory
    data/test_store_writer.py::test_memory_of_the_writer_does_not_grow
  appears only when it is complete
    data/test_store_writer.py::test_killed_writers_leave_a_whole_store_or_none
  compares every byte with its checksum
    data/test_store_damage.py::test_verify_says_where
  every method runs in every way, or says
    algorithms/test_every_combination.py::test_a_method_runs_in_every_way_or_says_why_not
  its scripts](docs/algorithms.md#scripts-written-for-tensorflow-federated) run
    tff/test_seeds.py
docs/aggregation.md
  Every block on this page runs as a test
    test_documents.py::test_python_blocks_run
  goes into any algorithm, or is refused
    algorithms/test_every_combination.py
  left out of every one of these wrappers and counted
    aggregation/test_clipping.py::test_a_client_without_a_finite_norm_is_left_out_and_counted
  one of weight 0 changes nothing
    aggregation/test_laws.py::test_a_client_of_zero_weight_changes_nothing
  A test holds every method to it under a clip
    algorithms/test_bounded_clients.py::test_the_server_moves_as_far_as_the_clip_allows
  were, and is counted in
    algorithms/test_non_finite_aggregates.py::test_nothing_of_the_server_moves_but_the_round
  the result is NaN and `overflow` is
    aggregation/test_secure.py
  names every operator that shows the server
    core/language/test_secure.py
  to the same total
    aggregation/test_secure_protocol.py::test_the_total_is_that_of_the_operator
docs/algorithms.md
  cannot get them wrong
    core/language/test_padding.py
  Every method runs in every way, its own and yours
    algorithms/test_every_combination.py::test_the_documents_show_this_table
  whatever the padding holds and in any order
    algorithms/test_laws.py::test_what_padding_holds_changes_nothing
  nothing compiled after the first round
    algorithms/test_laws.py::test_rounds_do_not_recompile
  is bitwise the run that did not stop
    algorithms/test_laws.py::test_resuming_after_any_round_is_bitwise_equal
  and its schedules count rounds
    algorithms/test_fed_opt.py
  `ema` wraps any algorithm
    algorithms/test_fed_opt.py::test_the_average_of_an_algorithm_with_client_states
  is an argument of every method
    algorithms/test_failures.py::test_who_fails_is_as_if_never_sampled_whatever_the_method
  length compiles nothing
    tff/test_tff.py::test_a_list_of_another_size_compiles_nothing_after_the_first_of_its_bucket
docs/data.md
  is on the device as it is in the data, or is refused
    data/test_exact.py::test_a_feature_is_on_the_device_as_it_is_or_refused
  a shape that was there compiles nothing
    data/test_continual.py::test_data_that_grow_compile_once_for_each_bucket
  in memory that does not grow with their number
    data/importers/test_grouping.py::test_memory_does_not_grow_with_the_rows_and_no_file_is_left
  has a synthetic twin of the same schema
    data/published/test_twins.py
  and every host finds the same cohort by itself
    data/test_sampling_laws.py::test_another_process_finds_the_same_cohorts
  every set of c clients equally likely
    data/test_sampling_probabilities.py
  never sooner than so many rounds
    data/test_sampling_probabilities.py::test_the_separation_is_exact_also_across_epochs
  nobody contributes, and the server does what it does in every round
    data/test_sampling_rounds.py::test_nobody_contributes_nothing_to_a_round_that_takes_place
  it counts twice in every sum and mean
    data/test_sampling_rounds.py::test_a_client_that_is_drawn_twice_counts_twice
  A process that is killed at any moment
    data/test_client_states_crash.py::test_killed_writers_leave_a_committed_round
  a client that was never chosen has the initial state
    data/test_client_states.py::test_untouched_clients_take_nothing_on_disk_and_four_bytes_in_memory
  exactly, with `sort_unique_ids=True`
    data/test_partition_flwr.py
docs/design.md
  equal when they print the same, and what prints parses back
    core/language/test_types.py
  It cannot be indexed, iterated, compared or branched on
    core/language/test_errors.py
  an expression written twice is one node and one message
    core/language/test_operators.py::test_equal_expressions_are_one_message
  whose float32 sums are exact for up to 4,096 devices
    core/execution/test_engine.py::test_integer_sums_across_devices_are_exact
  neither a crash nor a wrong number
    core/rewriting/test_jaxprs.py::test_training_goes_on_under_a_jax_that_nobody_has_seen
  is zeroed, left out and counted
    algorithms/test_fed_avg.py::test_a_non_finite_client_is_left_out_and_counted
  Padding cannot be wrong
    core/language/test_padding.py
  equal the centralised value
    algorithms/test_client.py::test_federated_evaluation_equals_the_centralised_value_on_the_union
  does not depend on the padding
    algorithms/test_client.py
  sums of two numbers are bitwise equal
    core/execution/test_hosts.py::test_sums_of_two_numbers_are_bitwise_equal
  the one place where a round is put together
    test_promises.py::test_one_file_puts_rounds_together
fedjx/training/client.py
  Every example is used once per epoch
    algorithms/test_client.py::test_every_example_once_per_epoch_and_epochs_differ
  add up to those of the union
    algorithms/test_client.py::test_federated_evaluation_equals_the_centralised_value_on_the_union
fedjx/training/stateful_rounds.py
  ends with the same bits
    algorithms/test_stateful_rounds.py::test_a_run_resumes_wherever_it_was_interrupted
docs/experiments.md
  Every block on this page runs as a test
    test_documents.py::test_python_blocks_run
  Killed at any moment, it goes on from the last checkpoint and ends with the bits of a run that was not killed
    experiment/test_killed.py::test_a_killed_run_ends_with_the_same_bits
  a run that would differ is refused with the difference
    experiment/test_loop.py::test_it_goes_on_bitwise_and_returns_what_is_finished
  end a run after its round, with a checkpoint
    experiment/test_loop.py::test_a_wish_to_end_is_granted_after_the_round
  Ctrl-C again ends it at once
    experiment/test_loop.py::test_an_interrupt_waits_for_the_round_and_a_second_one_does_not
  it has lost the rounds since its last checkpoint
    experiment/test_loop.py::test_a_disk_that_is_full_is_said_and_nothing_is_lost
  Two runs in one directory are refused
    experiment/test_run_directory.py::test_two_runs_in_one_directory_and_the_lock_of_a_dead_one
  The same rows make the same file
    experiment/test_report.py::test_the_same_rows_make_the_same_file
  It needs no network and runs no script
    experiment/test_report.py::test_nothing_is_fetched_and_nothing_runs
fedjx/experiment/loop.py
  ends with the bits of a run that was not, if `lanes` is a number
    experiment/test_killed.py::test_a_killed_run_ends_with_the_same_bits
fedjx/experiment/log.py
  `add` returns at once
    experiment/test_log.py::test_adding_a_row_does_not_wait_for_who_writes_it
fedjx/training/failures.py
  reports bit by bit
    algorithms/test_failures.py::test_who_does_not_fail_reports_as_before
fedjx/data/partitions/dirichlet.py
  every example is in exactly one client
    data/test_partition.py::test_dirichlet_covers_every_example_once
fedjx/data/sampling.py
  a function of (seed, round)
    data/test_sampling_laws.py::test_the_next_round_alone_is_the_next_round_of_a_run
fedjx/data/importers/grouping.py
  the result does not depend on the blocks
    data/importers/test_grouping.py::test_rows_in_any_order_and_in_any_blocks_are_grouped
fedjx/core/language/operators.py
  A client's key depends on nothing but
    core/language/test_operators.py::test_keys_depend_on_the_id_only
fedjx/algorithms/evaluation.py
  Every metric equals that of all clients
    algorithms/test_client.py::test_federated_evaluation_equals_the_centralised_value_on_the_union
fedjx/algorithms/gaussian_mixture.py
  the likelihood never falls
    algorithms/test_clusters.py::test_a_round_is_a_step_of_expectation_maximisation_and_the_likelihood_never_falls
fedjx/algorithms/kmeans.py
  One without points stays
    algorithms/test_clusters.py::test_a_round_is_the_weighted_running_mean_and_an_empty_cluster_stays
fedjx/algorithms/personalization.py
  not on the cohort
    algorithms/test_personalization.py::test_what_a_client_gets_does_not_depend_on_the_cohort
fedjx/algorithms/scaffold.py
  c stays the mean of all N clients' controls
    algorithms/test_control.py::test_the_server_control_stays_the_mean_of_all_clients_controls
"""


def test_every_promise_is_held_by_a_test():
    documents = re.split(r"^(?=\S)", PROMISES, flags=re.MULTILINE)[1:]
    assert len(documents) > 10
    for document in documents:
        name, *lines = document.splitlines()
        text = _plain((ROOT / name).read_text())
        for words, where in zip(lines[::2], lines[1::2], strict=True):
            assert words.strip() in text, (
                f"{name} says no more: {words!r}. Say here what it says, if the test holds it."
            )
            file, _, test = where.strip().partition("::")
            found = (ROOT / "tests" / file).read_text()
            assert not test or f"def {test}(" in found, f"a test holds {words!r} of {name}; got none called {where}."


def test_every_guarantee_is_held_by_a_test():
    text, _, approximate = (ROOT / "docs/guarantees.md").read_text().partition("## What is approximate")
    assert approximate
    lines = re.findall(r"^\* .*$", text, flags=re.MULTILINE)
    assert len(lines) > 25
    for line in lines:
        held = re.findall(r"\[test\]\(\.\./([\w/.]+) \"(\w+)\"\)", line)
        assert held, f"a test holds each guarantee; got none of {line!r}. Link to it."
        for file, test in held:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file} has no {test}. Name the test that holds it."


def test_documents_promise_no_time_that_is_not_held():
    """A time is that of a machine, and stands where it was measured: in the results, and as a design's reason."""
    held = re.findall(r"^  (\S.*second.*)$", PROMISES, flags=re.MULTILINE)
    pages = ("aggregation", "algorithms", "data", "guarantees", "limits", "pods")
    for document in ("README.md", *(f"docs/{name}.md" for name in pages)):
        promised = re.findall(r"[^.]*\b(?:minutes?|(?:milli)?seconds?)\b[^.]*", _prose((ROOT / document).read_text()))
        wrong = [sentence for sentence in promised if not any(words in _plain(sentence) for words in held)]
        assert not wrong, f"{document} promises a time: {wrong}"


def test_one_file_puts_rounds_together():
    """What calls an aggregator is a round, a question, or an aggregator that wraps another one."""
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fedjx").rglob("*.py")
        if re.search(r"^\s+(?!>>>)\S*.*\baggregator\.next\(", path.read_text(), flags=re.MULTILINE)
    ]
    assert sorted(path for path in found if not path.startswith("fedjx/aggregation/")) == [
        "fedjx/analytics/sums.py",
        "fedjx/training/round.py",
    ]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _prose(text: str) -> str:
    return re.sub(r"`[^`]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
