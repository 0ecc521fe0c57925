// The conversations that were opened in this tab, and what people do in them. A turn goes on being
// read when its person looks at another conversation.
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { signal, type Signal } from "@preact/signals";

import { chat } from "../api/clients";
import { failureOf, type Failure } from "../api/failure";
import { newId } from "../api/id";
import { StreamChatRequestSchema, type StoredMessage } from "../gen/weft/v1/chat_pb";
import { hideConversation, refreshConversations, showConversation } from "./conversations";
import { follow } from "./follow";
import { chatLink, go, route } from "./route";
import { forgetRunning, rememberRunning, runningTurns } from "./running";
import { chosenDatasets, chosenModel } from "./search";
import { Turn } from "./turn";
import { clearReady } from "./uploads";

const PAGE_SIZE = 200;

export interface OpenConversation {
  readonly id: string;
  readonly turns: Signal<readonly Turn[]>;
  readonly state: Signal<"loading" | "ready" | "missing" | Failure>;
}

const opened = new Map<string, OpenConversation>();
/** What was typed and not sent, by conversation; "" is the new one. */
export const drafts = signal<Readonly<Record<string, string>>>({});

export function setDraft(conversationId: string, text: string): void {
  drafts.value = { ...drafts.value, [conversationId]: text };
}

/** The conversation of that id; the first time it is read from the server. */
export function conversation(id: string): OpenConversation {
  let known = opened.get(id);
  if (!known) {
    known = { id, turns: signal([]), state: signal("loading") };
    opened.set(id, known);
    void load(known);
  }
  return known;
}

export async function load(open: OpenConversation): Promise<void> {
  open.state.value = "loading";
  try {
    const stored = await storedTurns(open.id);
    const here = new Map(open.turns.value.map((turn) => [turn.requestId, turn]));
    const turns = stored.map((turn) => here.get(turn.requestId) ?? turn);
    const added = new Set(turns);
    open.turns.value = [...turns, ...open.turns.value.filter((turn) => !added.has(turn))];
    for (const turn of turns) if (turn.running && !here.has(turn.requestId)) void read(open, turn);
    open.state.value = "ready";
  } catch (error) {
    const unknown = ConnectError.from(error).code === Code.NotFound;
    if (unknown) open.state.value = open.turns.value.length > 0 ? "ready" : "missing";
    else open.state.value = failureOf(error);
  }
}

async function storedTurns(conversationId: string): Promise<Turn[]> {
  const messages: StoredMessage[] = [];
  let running = "";
  let pageToken = "";
  do {
    const page = await chat.getConversation({ conversationId, pageSize: PAGE_SIZE, pageToken });
    messages.push(...page.messages);
    running = page.conversation?.runningRequestId ?? "";
    pageToken = page.nextPageToken;
  } while (pageToken);
  const questions = new Map<string, string>();
  const answers = new Map<string, StoredMessage>();
  for (const message of messages) {
    if (message.role === "user") questions.set(message.requestId, message.content);
    else answers.set(message.requestId, message);
  }
  return [...questions].map(([requestId, question]) => {
    const answer = answers.get(requestId);
    const live = requestId === running || answer?.status === "running";
    return live
      ? new Turn(conversationId, requestId, question)
      : Turn.stored(conversationId, requestId, question, answer);
  });
}

/** Asks in the conversation that is open, or in a new one. */
export function ask(question: string): void {
  const here = route.value.view === "chat" ? route.value.id : "";
  const conversationId = here || `conv_${newId()}`;
  if (!here) opened.set(conversationId, { id: conversationId, turns: signal([]), state: signal("ready") });
  const open = conversation(conversationId);
  if (open.turns.value.some((turn) => turn.running)) return;
  const requestId = newId();
  const request = create(StreamChatRequestSchema, {
    conversationId,
    requestId,
    messages: [{ role: "user", content: question }],
    resumable: true,
    useCache: true,
    datasetIds: [...chosenDatasets.value],
    modelId: chosenModel.value,
  });
  const turn = new Turn(conversationId, requestId, question, request);
  const closing = open.turns.value.map((one) => one.closing);
  open.turns.value = [...open.turns.value, turn];
  setDraft(here, "");
  clearReady();
  showConversation(conversationId, question);
  go(chatLink(conversationId));
  void Promise.all(closing).then(() => read(open, turn));
}

/** Goes on where the connection was lost, else asks again. */
export function retry(turn: Turn): void {
  if (turn.status.value !== "lost") return ask(turn.question);
  turn.failure.value = null;
  turn.status.value = "reconnecting";
  void read(conversation(turn.conversationId), turn);
}

/** Stops the turn: here at once, and at the server. */
export function stop(turn: Turn): void {
  const { conversationId, requestId } = turn;
  turn.end("cancelled");
  turn.closing = chat
    .cancelTurn({ conversationId, requestId })
    .catch(() => null) // not reached: then the lost connection ends the turn after its grace
    .finally(() => turn.reading.abort());
}

export async function rate(turn: Turn, rating: "up" | "down" | ""): Promise<void> {
  const before = turn.rating.value;
  turn.rating.value = rating;
  try {
    await chat.rateAnswer({ conversationId: turn.conversationId, requestId: turn.requestId, rating });
  } catch (error) {
    turn.rating.value = before;
    throw error;
  }
}

export async function deleteConversation(id: string): Promise<void> {
  await chat.deleteConversation({ conversationId: id });
  for (const turn of opened.get(id)?.turns.value ?? []) {
    if (turn.running) turn.end("cancelled");
    turn.reading.abort();
    forgetRunning(turn.requestId);
  }
  opened.delete(id);
  hideConversation(id);
  if (route.value.view === "chat" && route.value.id === id) go(chatLink(""));
}

/** After a reload: goes on with the turns that this tab was reading. */
export function goOn(): void {
  for (const { conversationId, requestId, question } of runningTurns()) {
    const open = conversation(conversationId);
    const turn = new Turn(conversationId, requestId, question);
    open.turns.value = [...open.turns.value, turn];
    void read(open, turn).then(() => {
      const reason = turn.failure.value?.reason;
      if (reason !== "TURN_NOT_FOUND" && reason !== "CONVERSATION_NOT_FOUND") return;
      // The question never reached the server: it goes back to where it was typed.
      open.turns.value = open.turns.value.filter((one) => one !== turn);
      setDraft(conversationId, question);
      if (open.turns.value.length === 0) open.state.value = "ready";
    });
  }
}

async function read(open: OpenConversation, turn: Turn): Promise<void> {
  const { conversationId, requestId, question } = turn;
  rememberRunning({ conversationId, requestId, question, startedAt: Date.now() });
  try {
    await follow(turn, chat);
  } finally {
    forgetRunning(requestId);
  }
  if (opened.get(open.id) === open) await refreshConversations();
}
