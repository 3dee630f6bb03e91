"""The page of the API: whole, well-formed, without anything that a strict policy forbids."""

from __future__ import annotations

import copy
import json
import re
from xml.etree import ElementTree

from gateway import openapi, reference
from gateway.routes import bindings

DOCUMENT = json.loads(openapi.document())
PAGE = reference.page().decode()
# As XML, which forgives nothing; the doctype alone is not XML's.
TREE = ElementTree.fromstring(PAGE.removeprefix("<!DOCTYPE html>\n"))


def test_it_has_every_method_with_path_verb_and_description() -> None:
    articles = {each.get("id"): "".join(each.itertext()) for each in TREE.iter("article")}
    for binding in bindings():
        text = articles[binding.method.name]
        assert binding.verb in text
        assert re.sub(r"\{.*", "", binding.template) in text
    comment = (
        "Ends a job by force: ABORTED at once; its agent kills the tree, and stop_state tells when that is proven."
    )
    assert comment in articles["AbortJob"]


def test_the_navigation_leads_to_every_operation_of_every_service() -> None:
    nav = TREE.find("body/nav")
    assert nav is not None
    linked = {link.get("href") for link in nav.iter("a")}
    assert {f"#{binding.method.name}" for binding in bindings()} <= linked
    assert {f"#{tag['name']}" for tag in DOCUMENT["tags"]} <= linked


def test_every_link_within_leads_somewhere_and_ids_are_unique() -> None:
    ids = [each.get("id") for each in TREE.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    links = [str(each.get("href")) for each in TREE.iter("a")]
    assert {link.removeprefix("#") for link in links if link.startswith("#")} <= set(ids)


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    names = {each.tag for each in TREE.iter()}
    assert names.isdisjoint({"script", "style", "img", "iframe", "form", "object", "base"})
    for each in TREE.iter():
        assert not any(name == "style" or name.startswith("on") for name in each.attrib)
        if each.tag != "a":
            assert each.get("href") in (None, "/static/reference.css")
    assert "://" not in "".join(str(each.get("href")) for each in TREE.iter("a"))


def test_what_a_contract_says_is_text_and_never_markup() -> None:
    hostile = '<script>alert("1")</script> & `<b>`'
    document = copy.deepcopy(DOCUMENT)
    document["info"]["title"] = hostile
    document["tags"][0]["description"] = hostile
    operation = document["paths"]["/v1/jobs"]["get"]
    operation["summary"] = operation["description"] = operation["parameters"][0]["description"] = hostile
    document["components"]["schemas"]["Job"]["properties"]["jobId"]["description"] = hostile
    document["components"]["schemas"][hostile] = {"type": "object", "description": hostile}
    tree = ElementTree.fromstring(reference.render(document).removeprefix("<!DOCTYPE html>\n"))
    assert {each.tag for each in tree.iter()} == {each.tag for each in TREE.iter()}


def test_paragraphs_lists_and_code_are_shown_as_such() -> None:
    [found] = [each for each in TREE.iter("article") if each.get("id") == "schema-JobStatus"]
    items = ["".join(item.itertext()) for item in found.iter("li")]
    assert "JOB_STATUS_TIMED_OUT: Ran past its run timeout." in items
    assert len(list(found.iter("p"))) == 1


def test_examples_can_be_pasted_into_a_shell() -> None:
    examples = {
        str(article.get("id")): "".join(pre.itertext())
        for article in TREE.iter("article")
        for pre in article.iter("pre")
    }
    assert examples["GetJob"] == 'curl -H @token.header "$SIS/v1/jobs/42"'
    assert examples["DeleteJob"] == 'curl -H @token.header -X DELETE "$SIS/v1/jobs/42"'
    assert examples["WatchJobs"] == 'curl -N -H @token.header "$SIS/v1/jobs:watch"'
    assert examples["GetConsoleOutput"] == 'curl -H @token.header -o file "$SIS/v1/jobs/42/output"'
    assert examples["CancelJob"].startswith('curl -H @token.header --json \'{"reason": "')
    assert "--data-binary @file" in examples["PushPackage"]
    assert set(examples) >= {binding.method.name for binding in bindings()}
