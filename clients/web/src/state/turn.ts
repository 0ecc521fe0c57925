// One turn: a question and its answer as it comes in.
import { signal } from "@preact/signals";

import type { Failure } from "../api/failure";
import type { ChatEvent, StoredMessage, StreamChatRequest } from "../gen/weft/v1/chat_pb";
import type { Reference } from "../gen/weft/v1/common_pb";
import type { Reason } from "../words";

/** "lost": the connection is; the turn may go on at the server. */
export type TurnStatus =
  "waiting" | "streaming" | "reconnecting" | "lost" | "complete" | "cancelled" | "interrupted" | "failed";

/** The screen is painted at most this often while text streams in. */
const PAINT_EVERY_MS = 40;

export class Turn {
  readonly text = signal("");
  readonly references = signal<readonly Reference[]>([]);
  readonly status = signal<TurnStatus>("waiting");
  readonly degraded = signal<readonly string[]>([]);
  readonly failure = signal<Failure | null>(null);
  readonly rating = signal("");
  /** Ends the reading of this turn's stream. */
  readonly reading = new AbortController();
  /** Settles when the server knows that the turn was stopped. */
  closing: Promise<unknown> = Promise.resolve();
  /** The last event that was taken in. */
  seq = 0;
  private arrived = "";
  private painting: ReturnType<typeof setTimeout> | undefined;

  /** `request`: what this page asked; null for a turn that it only reads. */
  constructor(
    readonly conversationId: string,
    readonly requestId: string,
    readonly question: string,
    readonly request: StreamChatRequest | null = null,
  ) {}

  /** A turn that ended earlier, from its two stored messages. */
  static stored(conversationId: string, requestId: string, question: string, answer?: StoredMessage): Turn {
    const turn = new Turn(conversationId, requestId, question);
    const known: TurnStatus[] = ["complete", "cancelled", "interrupted", "failed"];
    turn.text.value = answer?.content ?? "";
    turn.references.value = answer?.references ?? [];
    turn.rating.value = answer?.rating ?? "";
    turn.status.value = known.find((status) => status === answer?.status) ?? "interrupted";
    return turn;
  }

  get running(): boolean {
    return ["waiting", "streaming", "reconnecting"].includes(this.status.value);
  }

  /** Takes an event in; one that came before is passed over. True: it was the last one. */
  take(event: ChatEvent): boolean {
    if (!this.running) return true;
    if (event.seq <= this.seq) return false;
    this.seq = event.seq;
    this.status.value = "streaming";
    if (event.degraded.length > 0) this.degraded.value = event.degraded;
    switch (event.type) {
      case "delta":
        this.arrived += event.content;
        this.painting ??= setTimeout(() => this.paint(), PAINT_EVERY_MS);
        return false;
      case "refs":
        this.references.value = event.references;
        return false;
      case "done":
        this.end("complete");
        return true;
      case "error":
        this.endWith({ reason: event.reason as Reason, message: event.message });
        return true;
      default:
        return false;
    }
  }

  end(status: TurnStatus): void {
    this.paint();
    this.status.value = status;
  }

  endWith(failure: Failure): void {
    if (failure.reason === "TURN_CANCELLED") return this.end("cancelled");
    this.failure.value = failure;
    this.end(failure.reason === "LOST" ? "lost" : failure.reason === "INTERRUPTED" ? "interrupted" : "failed");
  }

  private paint(): void {
    clearTimeout(this.painting);
    this.painting = undefined;
    if (this.arrived) this.text.value += this.arrived;
    this.arrived = "";
  }
}
