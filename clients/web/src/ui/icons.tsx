// Icons, 24 by 24, drawn with the colour of the text. They say nothing to screen readers.
const paths = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7zM9 9h6v6H9zM11 11h2v2h-2z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 13l4 4L19 7",
  up: "M7 11v8H4v-8zM7 11l4-7c1.5 0 2.5 1 2.5 2.5L13 10h5.5a1.5 1.5 0 0 1 1.5 1.8l-1.2 5.9A1.6 1.6 0 0 1 17.2 19H7",
  down: "M7 13V5H4v8zM7 13l4 7c1.5 0 2.5-1 2.5-2.5L13 14h5.5a1.5 1.5 0 0 0 1.5-1.8l-1.2-5.9A1.6 1.6 0 0 0 17.2 5H7",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12M10 11v5M14 11v5",
  file: "M7 3h7l4 4v14H7zM14 3v4h4",
  files: "M4 7h5l2 2h9v10H4zM4 7V5h6l2 2",
  attach: "M20 11.5l-7.8 7.8a5 5 0 0 1-7.1-7.1l8.5-8.5a3.3 3.3 0 0 1 4.7 4.7l-8.5 8.5a1.7 1.7 0 0 1-2.4-2.4l7.8-7.8",
  chat: "M5 6h14v10h-8l-4 3.5V16H5z",
  sun: "M12 8.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7zM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6L7 7M17 17l1.4 1.4M18.4 5.6L17 7M7 17l-1.4 1.4",
  moon: "M19 14.5A7.5 7.5 0 0 1 9.5 5a7.5 7.5 0 1 0 9.5 9.5z",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  bottom: "M6 10l6 6 6-6",
  alert: "M12 8v5M12 16.5v.01M12 3.5l9.5 16.5h-19z",
  search: "M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12zM15.5 15.5L20 20",
} as const;

export function Icon({ name, class: extra = "size-5" }: { name: keyof typeof paths; class?: string }) {
  return (
    <svg
      class={`${extra} shrink-0`}
      viewBox="0 0 24 24"
      fill="none"
      stroke="currentColor"
      stroke-width="1.7"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
    >
      <path d={paths[name]} />
    </svg>
  );
}

export function Mark({ class: extra = "size-8" }: { class?: string }) {
  return <img class={extra} src="/icon.svg" alt="" width={32} height={32} />;
}
