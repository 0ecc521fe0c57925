// The list of conversations, the latest first.
import { create } from "@bufbuild/protobuf";
import { computed, signal } from "@preact/signals";

import { chat } from "../api/clients";
import { failureOf, type Failure } from "../api/failure";
import { ConversationSchema, type Conversation } from "../gen/weft/v1/chat_pb";

const PAGE_SIZE = 30;
const TITLE_LENGTH = 80;

export const conversations = signal<readonly Conversation[] | null>(null);
export const conversationsFailure = signal<Failure | null>(null);
const nextPage = signal("");
export const moreConversations = computed(() => nextPage.value !== "");

/** Reads the newest page again; what older pages brought stays. */
export async function refreshConversations(): Promise<void> {
  try {
    const page = await chat.listConversations({ pageSize: PAGE_SIZE });
    const fresh = new Set(page.conversations.map((one) => one.conversationId));
    const older = (conversations.value ?? []).slice(PAGE_SIZE).filter((one) => !fresh.has(one.conversationId));
    if (older.length === 0) nextPage.value = page.nextPageToken;
    conversations.value = [...page.conversations, ...older];
    conversationsFailure.value = null;
  } catch (error) {
    conversationsFailure.value = failureOf(error);
  }
}

export async function loadMoreConversations(): Promise<void> {
  try {
    const page = await chat.listConversations({ pageSize: PAGE_SIZE, pageToken: nextPage.value });
    const known = new Set(conversations.value?.map((one) => one.conversationId));
    const older = page.conversations.filter((one) => !known.has(one.conversationId));
    conversations.value = [...(conversations.value ?? []), ...older];
    nextPage.value = page.nextPageToken;
  } catch (error) {
    conversationsFailure.value = failureOf(error);
  }
}

/** Puts a conversation on top before the server has told of it. */
export function showConversation(conversationId: string, question: string): void {
  const list = conversations.value ?? [];
  const known = list.find((one) => one.conversationId === conversationId);
  const title = [...question.trim()].slice(0, TITLE_LENGTH).join("");
  const top = known ?? create(ConversationSchema, { conversationId, title });
  conversations.value = [top, ...list.filter((one) => one !== known)];
}

export function hideConversation(conversationId: string): void {
  conversations.value = conversations.value?.filter((one) => one.conversationId !== conversationId) ?? null;
}
