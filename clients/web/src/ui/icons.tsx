// Icons, 24 by 24, drawn with the colour of the text. They say nothing to screen readers.
const paths = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 13l4 4L19 7",
  up: "M7 11v8H4v-8zM7 11l4-7c1.500 0 2.500 1 2.500 2.500L13 10h5.500a1.500 1.500 0 0 1 1.500 1.800l-1.200 5.900A1.600 1.600 0 0 1 17.200 19H7",
  down: "M7 13V5H4v8zM7 13l4 7c1.500 0 2.500-1 2.500-2.500L13 14h5.500a1.500 1.500 0 0 0 1.500-1.800l-1.200-5.900A1.600 1.600 0 0 0 17.200 5H7",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12M10 11v5M14 11v5",
  file: "M7 3h7l4 4v14H7zM14 3v4h4",
  files: "M4 7h5l2 2h9v10H4zM4 7V5h6l2 2",
  attach: "M18 11l-6.500 6.500a4 4 0 0 1-5.700-5.700l7-7a2.700 2.700 0 0 1 3.800 3.800l-6.800 6.800a1.300 1.300 0 0 1-1.900-1.900L14 7.500",
  chat: "M5 6h14v10h-8l-4 3.500V16H5z",
  sun: "M12 8.500a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7zM12 3v2M12 19v2M3 12h2M19 12h2M5.600 5.600L7 7M17 17l1.400 1.400M18.400 5.600L17 7M7 17l-1.400 1.400",
  moon: "M19 14.500A7.500 7.500 0 0 1 9.500 5a7.500 7.500 0 1 0 9.500 9.500z",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  bottom: "M6 10l6 6 6-6",
  alert: "M12 8v5M12 16.500v.01M12 3.500l9.500 16.500h-19z",
  search: "M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12zM15.500 15.500L20 20",
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
