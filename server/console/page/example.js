// A picture to try without having one at hand: a sailing boat, painted here, so it comes with the page.

export function paintExample() {
  const canvas = document.createElement("canvas");
  canvas.width = 640;
  canvas.height = 480;
  const pen = canvas.getContext("2d");
  const gradient = (y0, y1, ...stops) => {
    const found = pen.createLinearGradient(0, y0, 0, y1);
    stops.forEach((colour, n) => found.addColorStop(n / (stops.length - 1), colour));
    return found;
  };
  const shape = (colour, ...points) => {
    pen.fillStyle = colour;
    pen.beginPath();
    points.forEach(([x, y]) => pen.lineTo(x, y));
    pen.fill();
  };
  const disc = (x, y, radius, colour) => {
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  };
  pen.fillStyle = gradient(0, 330, "#4f8fd0", "#a9d0ee", "#e8f1f4");
  pen.fillRect(0, 0, 640, 330);
  for (const [x, y, size] of [[96, 92, 26], [130, 84, 34], [168, 96, 24], [486, 66, 22], [516, 58, 30], [552, 70, 20]])
    disc(x, y, size, "rgb(255 255 255 / 75%)");
  shape("#7d98a8", [0, 330], [0, 296], [70, 276], [150, 300], [236, 284], [330, 318], [400, 330]);
  shape("#94abb6", [380, 330], [470, 306], [560, 290], [640, 302], [640, 330]);
  pen.fillStyle = gradient(326, 480, "#5d9ac0", "#2f6f9d", "#1b4f7a");
  pen.fillRect(0, 326, 640, 154);
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  for (let n = 0; n < 170; n++) {
    const y = 332 + random() ** 1.4 * 146;
    pen.fillStyle = `rgb(255 255 255 / ${6 + random() * 16}%)`;
    pen.fillRect(random() * 640, y, 10 + ((y - 320) / 160) * 46, 1.5 + (y - 320) / 110);
  }
  shape("rgb(255 255 255 / 28%)", [262, 398], [388, 398], [350, 470], [300, 470]);
  pen.fillStyle = "#5b3a24";
  pen.fillRect(318, 92, 6, 284);
  shape(gradient(96, 356, "#ffffff", "#dfe6ea"), [328, 98], [328, 352], [470, 352], [420, 240]);
  shape(gradient(120, 356, "#f4f7f8", "#cfd8de"), [314, 122], [314, 352], [212, 352], [262, 250]);
  shape("#c8372d", [324, 92], [324, 74], [358, 83]);
  shape(gradient(362, 404, "#8a3b2a", "#54231a"), [196, 364], [462, 364], [430, 400], [236, 400]);
  shape("#f0e6d4", [196, 364], [462, 364], [458, 370], [201, 370]);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
