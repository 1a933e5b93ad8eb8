"""Fill the tables of README.md, docs/results.md and the released model's seeds.json from measured files; draw docs/results.png.

python benchmarks/results_page.py            # --check: change nothing, end with 1 if a table is not current
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FOLDER = ROOT / "pretrained" / "lite0-ham10000-msk"
PREDICTIONS = RESULTS / "test_predictions"  # of the three seeds of the released recipe
RELEASED, SEEDS = FOLDER / "metrics.json", FOLDER / "seeds.json"
CHART = ROOT / "docs" / "results.png"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
SOURCES = {"HAM": "HAM10000", "MSK": "MSK, with lesion id", "unknown": "MSK, without lesion id"}
EARLIER = ("ham10000_lite0", "ham10000_lite0_seed43", "ham10000_lite0_seed44")
N_DIAGNOSES = 4
OTHER_SEEDS = ("both_mean_seed43", "both_mean_seed44")  # of the released recipe; the released model is seed 42
UNSEEN = {
    "ham_mean_on_msk": ("HAM10000", "MSK, with and without lesion id"),
    "msk_mean_on_ham": ("MSK", "HAM10000"),
}


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; end with 1 if a table is not current")
    check = parser.parse_args().check
    tables, stale = make_tables(), []
    for path in (*PAGES, SEEDS):
        old = path.read_text(encoding="utf-8")
        new = other_runs() if path == SEEDS else filled(old, tables)
        if new != old:
            stale.append(path.name)
            if not check:
                path.write_text(new, encoding="utf-8")
    with Image.open(CHART) as chart:
        drawn = chart.info.get("Description")
    if drawn != repr(bars()):
        stale.append(CHART.name)
    if not check:
        draw(CHART, bars())
    print(f"{'not current' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    return int(check and bool(stale))


def filled(text: str, tables: Mapping[str, str]) -> str:
    """Replace the table below each line `<!-- table: NAME -->`."""

    def fill(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{tables[found[1]]}\n"

    return re.sub(r"^<!-- table: (\w+) -->\n(?:\|.*\n)*", fill, text, flags=re.MULTILINE)


def make_tables() -> dict[str, str]:
    """Return each table as Markdown."""
    released = read(RELEASED)
    return {
        "story": story(released),
        "released": released_table(released),
        "sources": sources_table(released),
        "seeds": seeds_table(released),
        "unseen": unseen_table(),
        "aims": aims_table(released),
    }


def story(released: Mapping[str, Any]) -> str:
    """Return the same kind of network on a leaking and on a lesion split, and the released model."""
    reference, leaking = (
        read(ROOT / "benchmarks" / "reference.json"),
        read(RESULTS / "ham10000_lite0_random_split" / "metrics.json"),
    )
    rows = [
        [
            "trained on → tested on",
            "test images",
            "lesion also in train",
            "balanced accuracy",
            "accuracy, dataset's mix",
            "melanoma recall",
            "macro AUROC",
        ]
    ]
    recall, accuracy = reference_scores(reference)
    rows.append(
        [
            "reference system, ISIC 2019 → random split",
            f"{sum(map(sum, reference['published_confusion'])):,}",
            percent(reference["test_images_whose_lesion_is_in_train"]),
            f"{statistics.mean(recall.values()):.3f}",
            f"{accuracy:.3f}",
            f"{recall['MEL']:.3f}",
            "–",
        ]
    )
    rows.append(["Lite0, HAM10000 → random split ¹", *scores([leaking])])
    rows.append(["Lite0, HAM10000 → lesion split ¹, 3 seeds ± SD", *scores(runs(EARLIER))])
    rows.append(["today's recipe: Lite0, HAM10000 → lesion split", *scores(runs(["ham_mean"]))])
    rows.append(["the same network → MSK, a source it was not trained on", *scores(runs(["ham_mean_on_msk"]))])
    rows.append(
        ["today's recipe: Lite0, HAM10000 + MSK → lesion split, 3 seeds ± SD", *scores([released, *runs(OTHER_SEEDS)])]
    )
    rows.append(["**released model**: the best of these on val", *scores([released])])
    for source, words in SOURCES.items():
        group = released["groups"]["source"][source]
        rows.append(
            [
                f"… of which {words}",
                f"{group['n_images']:,}",
                "0 %",
                balanced(group),
                "–",
                value(group["recall"]["MEL"]),
                "–",
            ]
        )
    return markdown(rows)


def runs(names: Iterable[str]) -> list[Mapping[str, Any]]:
    """Return the metrics of runs in benchmarks/results."""
    return [read(RESULTS / name / "metrics.json") for name in names]


def scores(measured: list[Mapping[str, Any]]) -> list[str]:
    """Return the cells of one run with intervals, or of several as mean ± SD."""
    tests = [run["test"] for run in measured]
    leak = statistics.mean(run["data"]["leakage"]["overall"] or 0 for run in measured)
    diagnoses = tests[0].get("diagnoses", tests[0]["per_class"])  # runs before 2026-11-30 had all of them in test
    of = "" if len(diagnoses) == N_DIAGNOSES else f", {', '.join(diagnoses)}"
    cells = [f"{tests[0]['n_images']:,}", percent(leak)]
    for numbers in (
        [test["balanced_accuracy"] for test in tests],
        [test["accuracy"] for test in tests],
        [test["per_class"]["MEL"]["recall"] for test in tests],
        [test["macro_auroc"] for test in tests],
    ):
        each = [number["value"] for number in numbers]
        spread = f" ± {statistics.stdev(each):.3f}" if len(each) > 1 else ""
        cells.append(f"{statistics.mean(each):.3f}{spread}" if spread else value(numbers[0]))
    cells[2] += of  # where test lacks a diagnosis, the mean is over the others
    return cells


def released_table(metrics: Mapping[str, Any]) -> str:
    """Return the headline numbers of the released model on its lesion test."""
    test, ece = metrics["test"], metrics["calibration"]["test"]["after"]["ece"]
    point = mel_95(metrics)
    changes = metrics["robustness"]["changes"]
    far = {kind: row["auroc"]["value"] for kind, row in metrics["abstention"]["far"].items()}
    worst = min(far, key=far.__getitem__)
    near = metrics["abstention"]["near"]
    hidden = min(near, key=lambda code: near[code]["auroc"]["value"])
    flips = most_flipped(metrics)
    lossy = min(changes, key=lambda name: changes[name]["balanced_accuracy_gain"]["value"])
    sample = f"{metrics['robustness']['n_images']} test images"
    rows = [
        ["figure", "value (95 % interval over lesions)"],
        ["test images (lesions)", f"{test['n_images']:,} ({test['n_lesions']:,})"],
        ["balanced accuracy, equal priors", value(test["balanced_accuracy"])],
        ["accuracy, dataset's mix", value(test["accuracy"])],
        ["macro AUROC", value(test["macro_auroc"])],
        ["recall: melanoma", value(test["per_class"]["MEL"]["recall"])],
        ["recall: nevus", value(test["per_class"]["NV"]["recall"])],
        ["AUROC: melanoma", value(test["per_class"]["MEL"]["auroc"])],
        ["MEL@95: sensitivity", value(point["sensitivity"])],
        ["MEL@95: specificity", value(point["specificity"])],
        [
            "calibration error (ECE), dataset's mix; range if perfectly calibrated",
            f"{ece['value']:.3f}; {ece['if_calibrated']['low']:.3f}–{ece['if_calibrated']['high']:.3f}",
        ],
        [
            "baseline without the image: balanced accuracy",
            value(metrics["baselines"]["metadata_only"]["balanced_accuracy"]),
        ],
        ["abstains on test images", value(metrics["abstention"]["test"]["abstained"])],
        [
            f"far-OOD AUROC, worst kind ({worst}, {metrics['abstention']['far'][worst]['n_images']} generated images)",
            value(metrics["abstention"]["far"][worst]["auroc"]),
        ],
        [
            f"near-OOD AUROC, worst diagnosis ({hidden}, {near[hidden]['n_images']} images); below 0.5: more familiar than test",
            value(near[hidden]["auroc"]),
        ],
        [f"{sample}: highest flip rate under rotation and scaling ({flips})", value(changes[flips]["flip_rate"])],
        [
            f"{sample}, JPEG quality 50: change of balanced accuracy",
            value(changes["JPEG quality 50"]["balanced_accuracy_gain"]),
        ],
        [
            f"{sample}, blur 1.5 % of the side: change of balanced accuracy",
            value(changes["blur 1.5 % of the side"]["balanced_accuracy_gain"]),
        ],
        [
            f"{sample}, {lossy}: largest loss of balanced accuracy among {len(changes)} image changes",
            value(changes[lossy]["balanced_accuracy_gain"]),
        ],
    ]
    return markdown(rows)


def sources_table(metrics: Mapping[str, Any]) -> str:
    """Return the released model's scores by source."""
    rows = [
        [
            "source",
            "test images (lesions)",
            "balanced accuracy",
            "of",
            "melanoma recall",
            "nevus recall",
            "MEL@95 sensitivity",
            "MEL@95 specificity",
        ]
    ]
    for source, words in SOURCES.items():
        group = metrics["groups"]["source"][source]
        point = group["operating_points"]["MEL@95"]
        rows.append(
            [
                words,
                f"{group['n_images']:,} ({group['n_lesions']:,})",
                value(group["balanced_accuracy"]),
                ", ".join(group["diagnoses"]),
                value(group["recall"]["MEL"]),
                value(group["recall"]["NV"]),
                value(point["sensitivity"]),
                value(point["specificity"]),
            ]
        )
    return markdown(rows)


def seeds_table(released: Mapping[str, Any]) -> str:
    """Return what each seed of the released recipe reaches on test, and on each source of it."""
    rows = [["figure", "seed 42 (released)", *(f"seed {name[-2:]}" for name in OTHER_SEEDS), "mean ± SD"]]
    measured = [released, *runs(OTHER_SEEDS)]

    def of_source(source: str, *path: str) -> Callable[[Mapping[str, Any]], float]:
        return lambda run: entry(run["groups"]["source"][source], *path)

    figures: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "balanced accuracy": lambda run: entry(run, "test", "balanced_accuracy"),
        "accuracy, dataset's mix": lambda run: entry(run, "test", "accuracy"),
        "macro AUROC": lambda run: entry(run, "test", "macro_auroc"),
        "melanoma AUROC": lambda run: entry(run, "test", "per_class", "MEL", "auroc"),
        "melanoma recall": lambda run: entry(run, "test", "per_class", "MEL", "recall"),
        "nevus recall": lambda run: entry(run, "test", "per_class", "NV", "recall"),
        "ECE, dataset's mix": lambda run: entry(run, "calibration", "test", "after", "ece"),
        "highest flip rate under rotation and scaling": worst_flip,
    }
    for source, words in SOURCES.items():
        figures |= {
            f"{words}: balanced accuracy": of_source(source, "balanced_accuracy"),
            f"{words}: melanoma recall": of_source(source, "recall", "MEL"),
            f"{words}: nevus recall": of_source(source, "recall", "NV"),
            f"{words}: MEL@95 sensitivity": of_source(source, "operating_points", "MEL@95", "sensitivity"),
            f"{words}: MEL@95 specificity": of_source(source, "operating_points", "MEL@95", "specificity"),
        }
    for title, figure in figures.items():
        numbers = [figure(run) for run in measured]
        spread = f"{statistics.mean(numbers):.3f} ± {statistics.stdev(numbers):.3f}"
        rows.append([title, *(f"{number:.3f}" for number in numbers), spread])
    return markdown(rows)


def other_runs() -> str:
    """Return seeds.json: the other seeds, and the recipe on unseen sources, as the card shows them."""
    paths = {
        "balanced_accuracy": ("balanced_accuracy",),
        "accuracy": ("accuracy",),
        "macro_auroc": ("macro_auroc",),
        "MEL/recall": ("per_class", "MEL", "recall"),
        "NV/recall": ("per_class", "NV", "recall"),
    }
    tests = [run["test"] for run in (read(RELEASED), *runs(OTHER_SEEDS))]
    numbers = {name: [entry(test, *path) for test in tests] for name, path in paths.items()}
    seeds: list[dict[str, Any]] = [
        {"seed": seed, **{title: each[place] for title, each in numbers.items()}}
        for place, seed in enumerate(["42 (this model)", *(int(name[-2:]) for name in OTHER_SEEDS)])
    ]
    means = {title: f"{statistics.mean(each):.3f} ± {statistics.stdev(each):.3f}" for title, each in numbers.items()}
    seeds.append({"seed": "mean ± SD", **means})
    elsewhere = []
    for name, (trained_on, tested_on) in UNSEEN.items():
        [run] = runs([name])
        point = mel_95(run)
        elsewhere.append(
            {
                "Trained on": trained_on,
                "Tested on": f"{tested_on} ({run['test']['n_images']:,} images)",
                "Balanced accuracy": f"{entry(run, 'test', 'balanced_accuracy'):.3f} ({', '.join(run['test']['diagnoses'])})",
                "MEL/auroc": entry(run, "test", "per_class", "MEL", "auroc"),
                "MEL/recall": entry(run, "test", "per_class", "MEL", "recall"),
                "NV/recall": entry(run, "test", "per_class", "NV", "recall"),
                "MEL@95/sensitivity": point["sensitivity"]["value"],
                "MEL@95/specificity": point["specificity"]["value"],
            }
        )
    return json.dumps({"seeds": seeds, "elsewhere": elsewhere}, indent=2, ensure_ascii=False) + "\n"


def mel_95(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the threshold for 95 % of melanomas did on test."""
    return next(point["test"] for point in run["operating_points"] if point["name"] == "MEL@95")


def balanced(scores: Mapping[str, Any]) -> str:
    """Write a balanced accuracy with the diagnoses that it is over."""
    return f"{value(scores['balanced_accuracy'])}, {', '.join(scores['diagnoses'])}"


def entry(content: Mapping[str, Any], *path: str) -> float:
    """Return the value of a measured number."""
    for key in path:
        content = content[key]
    number: float = content["value"]
    return number


def unseen_table() -> str:
    """Return what a network reaches on a source that it was not trained on."""
    rows = [
        [
            "trained on → tested on",
            "images",
            "balanced accuracy",
            "melanoma recall",
            "nevus recall",
            "melanoma AUROC",
            "MEL@95 sensitivity",
            "MEL@95 specificity",
            "abstains",
        ]
    ]
    for name, (trained_on, tested_on) in UNSEEN.items():
        [run] = runs([name])
        test, point = run["test"], mel_95(run)
        rows.append(
            [
                f"{trained_on} → {tested_on}",
                f"{test['n_images']:,}",
                balanced(test),
                value(test["per_class"]["MEL"]["recall"]),
                value(test["per_class"]["NV"]["recall"]),
                value(test["per_class"]["MEL"]["auroc"]),
                value(point["sensitivity"]),
                value(point["specificity"]),
                value(run["abstention"]["test"]["abstained"]),
            ]
        )
        groups = run["groups"]["source"] if len(run["groups"]["source"]) > 1 else {}
        for source, group in groups.items():
            point = group["operating_points"]["MEL@95"]
            rows.append(
                [
                    f"… {SOURCES[source]}",
                    f"{group['n_images']:,}",
                    balanced(group),
                    value(group["recall"]["MEL"]),
                    value(group["recall"]["NV"]),
                    "–",
                    value(point["sensitivity"]),
                    value(point["specificity"]),
                    "–",
                ]
            )
    return markdown(rows)


def aims_table(released: Mapping[str, Any]) -> str:
    """Return the aims that were set beforehand, with what was reached: means of the seeds, from their test predictions."""
    source = pd.read_csv(FOLDER / "splits.csv").set_index("image_id")["source"]
    mix = pd.Series(released["model"]["class_priors"])
    seeds = pd.DataFrame([seed_figures(pd.read_csv(path), source, mix) for path in sorted(PREDICTIONS.glob("*.csv"))])
    reached = seeds.mean()
    measured = [released, *runs(OTHER_SEEDS)]

    def mean(*path: str) -> float:
        return statistics.mean(entry(run, *path) for run in measured)

    def at_point(rate: str) -> list[float]:
        return [mean("groups", "source", source, "operating_points", "MEL@95", rate) for source in SOURCES]

    lost = [
        -mean("robustness", "changes", name, "balanced_accuracy_gain")
        for name in ("JPEG quality 50", "blur 1.5 % of the side")
    ]
    flips = statistics.mean(map(worst_flip, measured))
    [unseen] = runs(["ham_mean_on_msk"])
    melanoma = unseen["test"]["per_class"]["MEL"]
    rows: list[tuple[str, str, list[float], list[float]]] = [  # the sign of an aim: at least, or -: at most
        ("HAM10000: balanced accuracy", "0.77", [reached["balanced"]], [0.77]),
        ("HAM10000: melanoma recall; nevus recall", "0.78; 0.75", [reached["MEL"], reached["NV"]], [0.78, 0.75]),
        ("HAM10000: macro AUROC", "0.945", [reached["macro AUROC"]], [0.945]),
        ("HAM10000: accuracy at the dataset's mix", "0.84", [reached["accuracy"]], [0.84]),
        ("HAM10000: ECE there, 15 bins of equal width", "at most 0.02", [reached["ECE"]], [-0.02]),
        ("MSK: melanoma AUROC", "0.88", [reached["MSK AUROC"]], [0.88]),
        ("MSK: melanoma recall", "0.70", [reached["MSK MEL"]], [0.70]),
        ("HAM10000, MSK with and without lesion id: MEL@95 sensitivity", "0.95 ²", at_point("sensitivity"), [0.95] * 3),
        ("MSK with and without lesion id: MEL@95 specificity", "0.50", at_point("specificity")[1:], [0.5] * 2),
        ("MSK unseen: melanoma AUROC", "0.78", [melanoma["auroc"]["value"]], [0.78]),
        ("MSK unseen: melanoma recall", "0.55", [melanoma["recall"]["value"]], [0.55]),
        ("MSK unseen: MEL@95 sensitivity", "0.86", [mel_95(unseen)["sensitivity"]["value"]], [0.86]),
        ("highest flip rate under rotation and scaling", "at most 0.08", [flips], [-0.08]),
        ("loss of balanced accuracy by JPEG quality 50", "at most 0.03", lost[:1], [-0.03]),
        ("loss of balanced accuracy by blur of 1.5 % of the side", "at most 0.03", lost[1:], [-0.03]),
    ]
    table = [["figure", "aim", "reached", ""]]
    for figure, aim, numbers, bounds in rows:
        met = all(
            number >= bound if bound > 0 else number <= -bound for number, bound in zip(numbers, bounds, strict=True)
        )
        table.append([figure, aim, ", ".join(f"{number:.3f}" for number in numbers), "met" if met else "**missed**"])
    return markdown(table)


def seed_figures(test: pd.DataFrame, source: pd.Series, mix: pd.Series) -> dict[str, float]:
    """Return the figures of one seed from its probabilities at equal priors of the test images."""
    codes = list(mix.index)
    test = test.assign(answer=test[codes].idxmax(axis=1), ham=test["image_id"].map(source) == "HAM")
    ham, msk = test[test["ham"]], test[~test["ham"]]
    at_mix = ham[codes] * mix
    at_mix = at_mix.div(at_mix.sum(axis=1), axis=0)
    sure, right = at_mix.max(axis=1), at_mix.idxmax(axis=1) == ham["label"]
    bins = pd.DataFrame({"sure": sure, "right": right}).groupby((sure * 15).astype(int).clip(upper=14))
    recall = (ham["answer"] == ham["label"]).groupby(ham["label"]).mean()
    aurocs = [roc_auc_score(ham["label"] == code, ham[code]) for code in codes]
    return {
        "balanced": recall.mean(),
        "MEL": recall["MEL"],
        "NV": recall["NV"],
        "macro AUROC": statistics.mean(aurocs),
        "accuracy": right.mean(),
        "ECE": float((abs(bins["sure"].mean() - bins["right"].mean()) * bins.size()).sum() / len(ham)),
        "MSK AUROC": roc_auc_score(msk["label"] == "MEL", msk["MEL"]),
        "MSK MEL": (msk["answer"] == "MEL")[msk["label"] == "MEL"].mean(),
    }


def most_flipped(run: Mapping[str, Any]) -> str:
    """Return the name of the rotation or scaling with the largest flip rate."""
    views = [name for name in run["robustness"]["changes"] if name.startswith(("rotation", "scale"))]
    return max(views, key=lambda name: entry(run, "robustness", "changes", name, "flip_rate"))


def worst_flip(run: Mapping[str, Any]) -> float:
    """Return the largest flip rate of rotation and scaling."""
    return entry(run, "robustness", "changes", most_flipped(run), "flip_rate")


def reference_scores(reference: Mapping[str, Any]) -> tuple[dict[str, float], float]:
    """Return recall by diagnosis and accuracy of the published confusion matrix."""
    confusion, codes = reference["published_confusion"], reference["codes"]
    recall = {code: row[index] / sum(row) for index, (code, row) in enumerate(zip(codes, confusion, strict=True))}
    return recall, sum(confusion[index][index] for index in range(len(codes))) / sum(map(sum, confusion))


def bars() -> dict[str, tuple[float, float]]:
    """Return balanced accuracy and leakage rate of each bar of the chart."""
    reference = read(ROOT / "benchmarks" / "reference.json")
    leaking = read(RESULTS / "ham10000_lite0_random_split" / "metrics.json")
    earlier = [entry(run, "test", "balanced_accuracy") for run in runs(EARLIER)]
    return {
        "reference system,\nrandom split": (
            statistics.mean(reference_scores(reference)[0].values()),
            reference["test_images_whose_lesion_is_in_train"],
        ),
        "Lite0, HAM10000,\nrandom split": (
            leaking["test"]["balanced_accuracy"]["value"],
            leaking["data"]["leakage"]["overall"],
        ),
        "Lite0, HAM10000,\nlesion split": (statistics.mean(earlier), 0.0),
        "released model,\nlesion split": (read(RELEASED)["test"]["balanced_accuracy"]["value"], 0.0),
    }


def draw(path: Path, bars: Mapping[str, tuple[float, float]]) -> None:
    """Draw balanced accuracy beside the leakage rate; the file names its numbers, so that an old one is noticed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.2, 3.4), dpi=130)
    places = range(len(bars))
    axis.bar(
        [x - 0.2 for x in places],
        [score for score, _ in bars.values()],
        0.38,
        color="#1f6f8b",
        label="balanced accuracy",
    )
    axis.bar(
        [x + 0.2 for x in places],
        [leak for _, leak in bars.values()],
        0.38,
        color="#d1495b",
        label="test images whose lesion is also in train",
    )
    for x, (score, leak) in zip(places, bars.values(), strict=True):
        axis.text(x - 0.2, score + 0.015, f"{score:.2f}", ha="center", fontsize=9)
        axis.text(x + 0.2, leak + 0.015, f"{100 * leak:.0f} %", ha="center", fontsize=9)
    axis.set_xticks(list(places), list(bars), fontsize=9)
    axis.set_ylim(0, 1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None, "Description": repr(bars)})


def value(number: Mapping[str, Any]) -> str:
    """Write a number of metrics.json with its interval."""
    if number.get("value") is None:
        return "too few"
    interval = f" ({number['low']:.3f}–{number['high']:.3f})" if number.get("low") is not None else ""
    return f"{number['value']:.3f}{interval}"


def percent(fraction: float) -> str:
    """Write a fraction in percent."""
    return f"{100 * fraction:.0f} %"


def markdown(rows: list[list[str]]) -> str:
    """Return rows, the first of them the heading, as a Markdown table."""
    head, *body = rows
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in body)]
    return "\n".join(lines)


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    sys.exit(main())
