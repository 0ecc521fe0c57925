// A turn is read to its end whatever happens to the connection.
import assert from "node:assert/strict";
import { test } from "node:test";

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, createRouterTransport } from "@connectrpc/connect";

import { ChatService, StreamChatRequestSchema, type ChatEventSchema } from "../src/gen/weft/v1/chat_pb";
import { follow } from "../src/state/follow";
import { Turn } from "../src/state/turn";
import { weftError } from "./fake";

type Event = MessageInitShape<typeof ChatEventSchema>;
const TEXT = ["All ", "of it, ", "**once**", " [1]."];
const EVENTS: Event[] = [
  ...TEXT.map((content) => ({ type: "delta", content })),
  { type: "refs", references: [{ id: 1, name: "a.pdf", content: "All of it." }], degraded: ["graph"] },
  { type: "done" },
].map((event, index) => ({ ...event, seq: index + 1 }));
const AT_ONCE = [0, 0, 0];

type Connection = (after: number) => AsyncIterable<Event>;

/** A mesh whose nth connection goes as the nth entry says; `calls` hears of each. */
function mesh(connections: Connection[], calls: string[]) {
  const next = (call: string, after: number) => {
    calls.push(call);
    const connection = connections[Math.min(calls.length, connections.length) - 1];
    assert(connection);
    return connection(after);
  };
  const transport = createRouterTransport((router) =>
    router.service(ChatService, {
      streamChat: (request) => next(`StreamChat ${request.requestId}`, request.afterSeq),
      resumeChat: (request) => next(`ResumeChat ${request.afterSeq}`, request.afterSeq),
    }),
  );
  return createClient(ChatService, transport);
}

async function* events(from: number, to: number): AsyncGenerator<Event> {
  yield* EVENTS.slice(from, to);
}
const whole: Connection = (after) => events(after, EVENTS.length);
const failing = (error: ConnectError): Connection =>
  async function* () {
    yield* [];
    throw error;
  };

function newTurn(): Turn {
  return new Turn("c1", "r1", "?", create(StreamChatRequestSchema, { conversationId: "c1", requestId: "r1" }));
}

for (let cut = 0; cut < EVENTS.length; cut += 1) {
  for (const how of ["ended", "failed"]) {
    test(`cut after event ${cut} (${how}): the text is the same, nothing twice`, async () => {
      const calls: string[] = [];
      const broken: Connection = async function* () {
        yield* events(0, cut);
        if (how === "failed") throw new ConnectError("network error", Code.Unknown);
      };
      const turn = newTurn();
      await follow(turn, mesh([broken, whole], calls), AT_ONCE);
      assert.equal(turn.text.value, TEXT.join(""));
      assert.equal(turn.status.value, "complete");
      assert.equal(turn.references.value.length, 1);
      assert.deepEqual([...turn.degraded.value], ["graph"]);
      assert.deepEqual(calls, ["StreamChat r1", cut === 0 ? "StreamChat r1" : `ResumeChat ${cut}`]);
    });
  }
}

test("events that come again are passed over", async () => {
  const again: Connection = () => events(0, EVENTS.length);
  const turn = newTurn();
  await follow(turn, mesh([() => events(0, 2), again], []), AT_ONCE);
  assert.equal(turn.text.value, TEXT.join(""));
});

test("a connection that never comes back is a loss with what there is, and can be taken up again", async () => {
  const lost = failing(new ConnectError("gone", Code.Unavailable));
  const calls: string[] = [];
  const turn = newTurn();
  await follow(turn, mesh([() => events(0, 2), lost], calls), AT_ONCE);
  assert.equal(turn.status.value, "lost");
  assert.equal(turn.text.value, "All of it, ");
  assert.equal(calls.length, 1 + AT_ONCE.length);
  turn.status.value = "reconnecting";
  await follow(turn, mesh([whole], []), AT_ONCE);
  assert.equal(turn.text.value, TEXT.join(""));
});

test("a refusal is not tried again", async () => {
  const calls: string[] = [];
  const turn = newTurn();
  await follow(
    turn,
    mesh([failing(weftError(Code.FailedPrecondition, "TURN_RUNNING", "One at a time."))], calls),
    AT_ONCE,
  );
  assert.equal(calls.length, 1);
  assert.equal(turn.status.value, "failed");
  assert.equal(turn.failure.value?.reason, "TURN_RUNNING");
});

test("a server that drains is left for another", async () => {
  const turn = newTurn();
  await follow(turn, mesh([failing(weftError(Code.Unavailable, "DRAINING", "Stopping.")), whole], []), AT_ONCE);
  assert.equal(turn.status.value, "complete");
});

test("a token that ran out is renewed once", async () => {
  const refused = failing(new ConnectError("expired", Code.Unauthenticated));
  const turn = newTurn();
  await follow(turn, mesh([refused, whole], []), AT_ONCE);
  assert.equal(turn.status.value, "complete");
  const other = newTurn();
  await follow(other, mesh([refused], []), AT_ONCE);
  assert.equal(other.failure.value?.reason, "TOKEN_INVALID");
});

test("an error event ends the turn with its reason", async () => {
  const error: Event = { type: "error", reason: "MODEL_TIMEOUT", message: "Silent.", seq: 2 };
  const broken: Connection = async function* () {
    yield* events(0, 1);
    yield error;
  };
  const turn = newTurn();
  await follow(turn, mesh([broken], []), AT_ONCE);
  assert.equal(turn.status.value, "failed");
  assert.equal(turn.text.value, "All ");
  assert.equal(turn.failure.value?.reason, "MODEL_TIMEOUT");
});

test("a stopped turn takes no more events", async () => {
  const turn = newTurn();
  const slow: Connection = async function* () {
    yield* events(0, 1);
    turn.end("cancelled");
    yield* events(1, EVENTS.length);
  };
  await follow(turn, mesh([slow], []), AT_ONCE);
  assert.equal(turn.text.value, "All ");
  assert.equal(turn.status.value, "cancelled");
});
