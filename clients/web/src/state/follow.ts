// Reads a turn to its end, over as many connections as it takes.
import { Code, ConnectError } from "@connectrpc/connect";

import type { ChatClient } from "../api/clients";
import { failureOf, type Failure } from "../api/failure";
import type { ChatEvent } from "../gen/weft/v1/chat_pb";
import type { Turn } from "./turn";

/** Milliseconds before each new try. The first come well within the server's grace of 5 s. */
const BACK_OFF_MS = [100, 300, 600, 1000, 2000, 3000, 5000, 5000, 10_000, 10_000];

/**
 * Reads `turn` until it has ended or `turn.reading` is aborted; never throws. An own turn of which
 * nothing was heard yet is sent again under its request id, which the server takes for the same
 * turn; any other goes on after the last event.
 */
export async function follow(turn: Turn, chat: ChatClient, backOffMs = BACK_OFF_MS): Promise<void> {
  let tries = 0;
  let newToken = false;
  while (turn.running) {
    const before = turn.seq;
    let failure: Failure;
    try {
      for await (const event of connect(turn, chat)) {
        if (turn.take(event)) return;
      }
      failure = { reason: "LOST", message: "" }; // ended without done or error: cut off
    } catch (error) {
      if (turn.reading.signal.aborted) return;
      if (ConnectError.from(error).code === Code.Unauthenticated && !newToken) {
        newToken = true;
        continue;
      }
      failure = failureOf(error);
    }
    if (turn.seq > before) tries = 0;
    const wait = backOffMs[tries];
    tries += 1;
    if (!passes(failure, turn.seq > 0) || wait === undefined) return turn.endWith(failure);
    turn.status.value = "reconnecting";
    await pause(wait, turn.reading.signal);
  }
}

function connect(turn: Turn, chat: ChatClient): AsyncIterable<ChatEvent> {
  const options = { signal: turn.reading.signal, headers: { "x-request-id": turn.requestId } };
  if (turn.request && turn.seq === 0) return chat.streamChat(turn.request, options);
  const { conversationId, requestId, seq: afterSeq } = turn;
  return chat.resumeChat({ conversationId, requestId, afterSeq, resumable: true }, options);
}

/** Whether trying again may help. */
function passes(failure: Failure, begun: boolean): boolean {
  if (failure.reason === "LOST" || failure.reason === "DRAINING") return true;
  return begun && (failure.reason === "BACKEND_UNAVAILABLE" || failure.reason === "OVERLOADED");
}

/** Waits, but not longer than it takes for the network to come back or the signal to fire. */
function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      globalThis.removeEventListener?.("online", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
    globalThis.addEventListener?.("online", end);
  });
}
