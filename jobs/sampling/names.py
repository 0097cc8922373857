"""Product names as sellers write them: trademarks, inch marks, umlauts, other scripts, and worse."""

from __future__ import annotations

import numpy as np

from jobs.sampling.draws import pick

BRANDS = (
    "Aurelio", "Björnstad", "Café Lumière", "Dr. Müller's", "Ember & Oak", "Fjällgård", "GreenLeaf®", "Holt & Sons",
    "Ibáñez", "JunoKids™", "KITA 北", "Luma+", "Mönch", "NorthPeak", "O'Malley", "PureNest", "Quill & Co.", "RÖST",
    "Søster", "Tidewater", "UltraGrip", "Vélo", "Wild Harbor", "XtraBright", "Yamazaki", "Zoë",
)  # fmt: skip
ADJECTIVES = (
    "Premium", "Stainless Steel", "All Natural", "Extra Strength", "Heavy-Duty", "Adjustable", "Rechargeable", "Mini",
    "Deluxe", "Organic", "Waterproof", "Original", "Kids'", "Professional", "Classic", "Ultra-Thin",
)  # fmt: skip
PRODUCTS = {
    "box": ("LED Desk Lamp", "Vegetable Spiralizer", "Phone Charger", "Protein Bars", "Coffee Capsules", "Router",
            "Board Game", "Light Bulbs", "Toner Cartridge", "Ceramic Mug", "Green Tea"),
    "book": ("The Last Harbor: A Novel", "Learn to Draw in 30 Days", "Wörterbuch Deutsch–Englisch", "Cálculo I",
             "My First Atlas", "The Kitchen Year", "Notebook, Ruled", "A Short History of Maps"),
    "bag": ("Fleece Blanket", "Dog Treats", "Bath Bombs", "Beach Towel", "Travel Pillow", "Kids Leggings",
            "Costume Wig", "Grain-Free Kibble"),
    "bottle": ("Shampoo", "Whey Protein", "Vitamin D3", "Dish Soap", "Olive Oil", "Body Lotion", "Shaker Bottle"),
    "mailer": ("Phone Case", "Screen Protector", "T-Shirt", "Leather Strap", "Vinyl Decal", "Place Mats"),
    "blister": ("Toothbrush", "USB Cable", "Fishing Lures", "Hair Clips", "Key Rings", "Drill Bits", "Earbuds"),
}  # fmt: skip
COLOURS = ("Black", "White", "Azul", "Rosé", "Grün", "Clear Pink", "Silver/Gray", "黑色", "Red <XL>")
SIZES = ('6" x 9"', "7.3 Fluid Ounce", "2 lb. bag", "10-inch", "500 mL", "1½ oz", "4½″", "L/XL", "0.26mm", "A4")
PACKS = ("Pack of 2", "Pack of 12", "Set of 4", "3 Pack", "Box of 50")
# What breaks careless CSV, HTML, spreadsheets and terminals stands in real catalogues too.
ODD = (
    "=SUM(A1:A9) Kinderspiel, 2er-Set",
    "+10 Günstig @Home \"Starter\" Kit",
    "-20°C Kühlakku, 2 Stück; \"blau\"",
    "<b>Sale!</b> Straw & Brush <New>",
    "無印 ステンレスボトル 500ml（ブラック）",
    "保温杯 不锈钢 「家用」 & 办公",
    "한국 김 스낵, 12팩",
    "Чай чёрный, 100 пак.",
    "كتاب الرسائل",
    "Party 🎉 Candles & Topper 🎂 (12 pcs)",
    "Emoji Kissen 😀, \"groß\", 40 × 40 cm",
    "StrapWrapz&trade; Lifting Straps & Wrist Wraps",
    "C:\\Toys\\Robot, 'Series 2'",
    "Crème brûlée torch – “Chef’s” edition\u00a0®",
)  # fmt: skip


def draw_name(draw: np.random.Generator, kind: str) -> tuple[str, str]:
    """The seller's name and the normalised one, which carries the pack size in front as ABID's does."""
    if draw.random() < 0.08:
        name = pick(draw, ODD)
        return name, name
    name = f"{pick(draw, BRANDS)} {pick(draw, ADJECTIVES)} {pick(draw, PRODUCTS[kind])}"
    if draw.random() < 0.6:
        name += f", {pick(draw, SIZES)}"
    if draw.random() < 0.5:
        name += f" ({pick(draw, COLOURS)})"
    if draw.random() < 0.2:
        pack = pick(draw, PACKS)
        return f"{name}, {pack}", f"{pack} {name},"
    return name, name
