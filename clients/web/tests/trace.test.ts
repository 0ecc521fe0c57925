// The trace that a call of the page belongs to.
import assert from "node:assert/strict";
import { test } from "node:test";

import { newId } from "../src/api/id";
import { traceparent } from "../src/api/trace";

test("a call is a trace of its own, named by its request id", () => {
  const id = newId();
  assert.match(traceparent(id), new RegExp(`^00-${id}-[0-9a-f]{16}-01$`));
  assert.notEqual(traceparent(id), traceparent(id));
});

test("a request id of another form names no trace", () => {
  for (const id of ["", "turn-1", "F".repeat(32), "a".repeat(33)])
    assert.match(traceparent(id), /^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/, id);
});
