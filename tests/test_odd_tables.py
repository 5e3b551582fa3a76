"""Annotation, detection and feature files as people really have them: right, or one clear line.

The fuzzed files go through the commands.  What they give is compared with a second reading, written
here, and with the plain loops of `benchmarks/postprocessing.py`: a number that comes out of a
file that this reading refuses is a fault, and so is any error that is not one line.
"""

import json
import math
import os
import random
import re
import unicodedata

import numpy as np
import pytest
from benchmarks.postprocessing import TIOUS, plain_map

from lofi import commands
from lofi.config import PublishedFeatures
from lofi.data import FeatureStore, check_dataset, read_annotations
from lofi.data.annotations import Video
from lofi.data.published import published_files, read_published
from lofi.detection import read_detections, read_hacs_top2, read_video_classes
from lofi.evaluation import detection_map

HEADER = "video,start_s,end_s,label,subset"
ROWS = [("a", 0, 4, "run", "validation"), ("b", 1.5, 90.25, "café", "validation")]


def table(rows=ROWS, header=HEADER, separator=",") -> str:
    lines = [header.replace(",", separator), *(separator.join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def segments(path) -> list[tuple]:
    return [(v.id, *vars(s).values()) for v in read_annotations(path) for s in v.segments]


EXPECTED = [row[:4] for row in ROWS]


# ------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    "data",
    [
        table().encode(),
        table().encode("utf-8-sig"),
        table(separator=";").encode(),
        table(separator="\t").encode(),
        table().replace("\n", "\r\n").encode() + b"\r\n\r\n",
        table().replace("\n", "\n\n").encode(),
        table(separator=";").replace("1.5", "1,5").replace("90.25", "90,25").encode(),
        table().replace("90.25", "1:30.25").replace("1.5", "00:00:01.5").encode(),
        table(separator=";").replace("90.25", "00:01:30,25").encode(),
        unicodedata.normalize("NFD", table()).encode(),
        table([(i, *row) for i, row in enumerate(ROWS)], f",{HEADER}").encode(),  # from pandas
    ],
)
def test_tables_that_are_right(tmp_path, data):
    (tmp_path / "t.csv").write_bytes(data)
    assert segments(tmp_path / "t.csv") == EXPECTED
    lines = data.decode("utf-8-sig")
    for old, new in (("subset", "score"), ("validation", "0.5")):
        lines = lines.replace(old, new)
    (tmp_path / "d.csv").write_text(lines)
    if ":" not in lines:  # clock times are for people, who do not write detections
        found = read_detections(tmp_path / "d.csv")
        assert [(v, *d[:3]) for v, ds in found.items() for d in ds] == EXPECTED


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (table().encode("utf-16"), "not UTF-8, looks like UTF-16; save it as UTF-8, or run: iconv"),
        (table().encode("utf-16-le"), "looks like UTF-16"),
        (table().encode("utf-16-be"), "looks like UTF-16"),
        (table().encode("cp1252"), r"\(line 3\), looks like Windows-1252; .*iconv -f Windows-1252"),
        (b"PK\3\4" + bytes(50), "looks like a spreadsheet"),
        (table().replace("run", "r\0n").encode(), "a zero byte in line 2"),
        (b"\xef\xbb\xbf\r\n", "the file is empty"),
        (table().replace("run", '"run').encode(), "line 2"),
        (table().replace("run", '"run\nrun"').encode(), "lines 2 to 3 are one row"),
        (table(header=HEADER.replace("end_s", "start_s")).encode(), "no column end_s"),
        (table(header=HEADER.replace("subset", "label")).encode(), "two columns are called label"),
        (
            table().replace("90.25", "1:90").encode(),
            "line 3: end_s is '1:90', expected sec",
        ),
        (table().replace("90.25", "0:75:01").encode(), "line 3: end_s"),
        (table().replace("90.25", "1:2:3:4").encode(), "line 3: end_s"),
        (table().replace("90.25", "9_0").encode(), "line 3: end_s is '9_0', expected a number"),
        (table().replace("90.25", "inf").encode(), "line 3: end_s is 'inf'"),
        (table().replace("90.25", "").encode(), "line 3: end_s is ''"),
        (table().replace("90.25", "1").encode(), "line 3: the segment is reversed"),
    ],
)
def test_tables_that_are_not(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_annotations(tmp_path / "t.csv")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path))
    if "1:" not in message and "reversed" not in message:
        for old, new in ((b"subset", b"score"), (b"validation", b"0.5")):
            data = data.replace(old, new)
        (tmp_path / "t.csv").write_bytes(data)
        with pytest.raises(ValueError, match=str(tmp_path)):
            read_detections(tmp_path / "t.csv")


@pytest.mark.parametrize("label", ["1,2", "3", "1.5", "-1", "1e3", "nan", "null", "1:30", ",5"])
def test_labels_that_look_like_numbers_stay_labels(tmp_path, label):
    for separator in ",;\t":
        quoted = f'"{label}"' if separator in label else label
        text = table(separator=separator).replace("run", quoted)
        (tmp_path / "t.csv").write_text(text)
        assert segments(tmp_path / "t.csv")[0] == ("a", 0, 4, label)


@pytest.mark.parametrize("label", [None, ["run"], {"run": 1}, True, 1.5, "", " "])
def test_labels_in_json_are_text_or_whole_numbers(tmp_path, label):
    entry = {"segment": [0, 4], "label": label}
    content = {"database": {"a": {"subset": "validation", "annotations": [entry]}}}
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="video 'a': annotation 0: label is .*, expected text"):
        read_annotations(tmp_path / "t.json")
    entry["label"] = 7
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert segments(tmp_path / "t.json") == [("a", 0, 4, "7")]
    with pytest.raises(ValueError, match="video a"):
        detection_map(content, {"a": [{"segment": [0, 4], "score": 1, "label": label}]})


def test_videos_under_two_ids_are_reported_by_check():
    videos = [Video(name, None, 9.0, None, "training", ()) for name in ("a", "v_a", "b")]
    found = check_dataset(videos).of("duplicate")
    assert [entry.video_id for entry in found] == ["v_a"] and "'a'" in found[0].detail


def test_equal_keys_are_found_whatever_else_holds_a_colon(tmp_path):
    for extra in (
        {},
        {"url": "https://x"},
        {"é": "a:b"},
        {"n": [{"m": {"o": 1}}]},
        {"x": math.nan},
    ):
        text = json.dumps({"results": {"a": [], "b": []}, "external_data": extra})
        (tmp_path / "d.json").write_text(text)
        assert read_detections(tmp_path / "d.json") == {"a": [], "b": []}
        (tmp_path / "d.json").write_text(text.replace('"b"', '"a"'))
        with pytest.raises(ValueError, match="'a' appears twice"):
            read_detections(tmp_path / "d.json")


# ------------------------------------------------------------------------------------ features


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)


def features_csv(rows, header="", index=False, separator=",", integers=False) -> str:
    lines = [separator.join(str(int(x)) if integers else repr(float(x)) for x in r) for r in rows]
    if index:
        lines = [f"{i}{separator}{line}" for i, line in enumerate(lines)]
    return "\n".join([header] * bool(header) + lines) + "\n"


def test_feature_tables_with_and_without_names_and_row_numbers(tmp_path, rows):
    path, three = tmp_path / "a.csv", PublishedFeatures(width=3)
    for text in (
        features_csv(rows),
        features_csv(rows, "f0,f1,f2"),
        features_csv(rows, '"f0","f1","f2"'),
        features_csv(rows, "0,1,2"),
        features_csv(rows, ",0,1,2", index=True),
        features_csv(rows, "Unnamed: 0,f0,f1,f2", index=True),
        features_csv(rows, "index,f0,f1,f2", index=True),
        features_csv(rows, index=True),
        features_csv(rows, separator=";"),
        features_csv(rows.T),
        "\ufeff" + features_csv(rows) + "\n\n",
    ):
        path.write_text(text, encoding="utf-8")
        np.testing.assert_array_equal(read_published(path, three).numpy(), rows.T, text)
    whole = (10 * rows).astype(int)
    whole[0] = 0, 1, 2
    for text, setting, message in (
        (features_csv(rows, index=True), PublishedFeatures(), "may be row numbers; set data.fe"),
        (features_csv(whole, integers=True), three, "may be names or numbers; name the columns"),
        (features_csv(rows, "1.5,x,2"), three, "mixes names and numbers"),
        (features_csv(rows, "f0,f1"), three, "2 names for 3 columns"),
        (features_csv(rows, ",f1,f2"), three, "not 0,1,2"),
        (features_csv(rows).replace(",", ";").replace(".", ","), three, "a.csv"),
        (features_csv(rows, "é,f1,f2"), three, "Windows-1252"),
        (features_csv(np.where(rows == rows[2, 1], np.nan, rows)), three, "row 2, column 1"),
        (features_csv(rows).replace("0.", "1e39"), three, "no finite numbers"),
        (features_csv(rows), PublishedFeatures(width=4), "neither side is 4 channels"),
    ):
        path.write_text(text, encoding="cp1252" if "é" in text else "utf-8")
        with pytest.raises(ValueError, match=message) as error:
            read_published(path, setting)
        assert "\n" not in str(error.value)
    for bad in (rows > 0, rows + 1j, rows.astype(str)):
        np.save(tmp_path / "a.npy", bad)
        with pytest.raises(ValueError, match="expected finite numbers"):
            read_published(tmp_path / "a.npy", three)


def test_turned_features_are_noticed_without_a_width(tmp_path, rows, caplog):
    videos = [Video(name, None, 9.0, None, None, ()) for name in "ab"]
    np.save(tmp_path / "a.npy", rows.T)
    np.save(tmp_path / "b.npy", rows[:5].T)
    store = FeatureStore.published(PublishedFeatures(str(tmp_path)), videos)
    assert store["a"].values.shape == (7, 3)
    assert "rows are taken as steps: 7 channels in a" in caplog.text
    with pytest.raises(ValueError, match="7 channels in a, 5 channels in b; set data.features.wi"):
        store["b"]
    np.save(tmp_path / "b.npy", rows)
    np.savetxt(tmp_path / "b.csv", rows, delimiter=",")
    with pytest.raises(ValueError, match="b.csv and b.npy are one video"):
        published_files(tmp_path, PublishedFeatures())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "not a class-score file"),
        ({"results": {"a": None}}, "not a class-score file"),
        ({"results": {"a": [0.5, math.nan]}, "class": ["x", "y"]}, "video a: 1 is nan"),
        ({"results": {"a": [0.5, None]}, "class": ["x", "y"]}, "video a: 1 is None"),
        ({"results": {"a": [0.5, True]}, "class": ["x", "y"]}, "video a: 1 is True"),
        ({"results": {"a": [0.5]}, "class": ["x", "y"]}, r"shape \(1,\)"),
        ({"results": {"a": [0.5, 1]}, "class": ["x", "x"]}, "class 'x' stands twice"),
        ({"results": {"a": [0.5, 1]}, "class": ["x", None]}, "a name in class is None"),
        ({"results": {"a": [0.5], "v_a": [1]}, "class": ["x"]}, "video a stands twice"),
        ({"a": [{"label": "x", "score": "?"}]}, "video a: score of 'x' is '[?]'"),
        ({"a": [{"label": None, "score": 1}]}, "video a: label is None"),
        ({"a": [{"label": "x", "score": 1}] * 2}, "class 'x' stands twice"),
        ({"a": ["x"]}, "video a: 'x'; expected"),
    ],
)
def test_class_scores_that_are_none(tmp_path, content, message):
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_video_classes(tmp_path / "c.json")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value) + str(tmp_path)
    (tmp_path / "top2.json").write_text(json.dumps({"0": [{"label": "x", "score": 1}]}))
    with pytest.raises(ValueError, match="class index 'x' of 1"):
        read_hacs_top2(tmp_path / "top2.json", ["x"], ["a"])


# ------------------------------------------------------------------------------------- fuzzing

CASES = int(os.environ.get("LOFI_FUZZ", "80"))  # files of a kind; more find rarer faults


class Nonsense(Exception):
    """What the reading below refuses."""


def reading_number(x, least=-math.inf, clock=False) -> float:
    if isinstance(x, str) and clock and re.fullmatch(r"[0-9:.]+", x.strip()) and ":" in x:
        *upper, last = x.strip().split(":")
        if (
            not 1 <= len(upper) <= 2
            or not all(upper)
            or "." in "".join(upper)
            or not last[:1].isdigit()
        ):
            raise Nonsense
        if float(last) >= 60 or (len(upper) == 2 and int(upper[1]) >= 60):
            raise Nonsense
        x = sum(60**k * float(part) for k, part in enumerate(reversed([*upper, last])))
    if isinstance(x, str) and re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", x, re.A):
        x = float(x)
    if (
        isinstance(x, bool)
        or not isinstance(x, int | float)
        or abs(x) > 1e300
        or x != x
        or x < least
    ):
        raise Nonsense
    return float(x)


def reading_label(x) -> str:
    if isinstance(x, bool) or not isinstance(x, str | int) or not str(x).strip():
        raise Nonsense
    return unicodedata.normalize("NFC", str(x))


def reading_id(x: str) -> str:
    if not x:
        raise Nonsense
    x = unicodedata.normalize("NFC", x)
    return re.sub(r"^v_(?=.)", "", re.sub(r"(?<=.)\.(mp4|mkv|webm|avi|mov)$", "", x, flags=re.I))


def once(pairs):
    if len({key for key, _ in pairs}) < len(pairs):
        raise Nonsense
    return dict(pairs)


def need(condition) -> None:
    if not condition:
        raise Nonsense


def pair(x) -> tuple:
    need(isinstance(x, list) and len(x) == 2)
    return tuple(x)


def reading_truth(content) -> dict:
    """{id: [(label, start, end)]} of the validation subset; and all labels."""
    need(isinstance(content, dict) and isinstance(content.get("database"), dict))
    found, labels = {}, set()
    with_subset = any(isinstance(e, dict) and "subset" in e for e in content["database"].values())
    for video, entry in content["database"].items():
        need(not any(bad in video for bad in ("/", "\\", "..", "\0")) and isinstance(entry, dict))
        need("annotations" in entry and ("subset" in entry or not with_subset))
        need(isinstance(entry["annotations"], list | None))
        if entry.get("duration") is not None:
            reading_number(entry["duration"], 0, clock=True)
        rows = []
        for a in entry["annotations"] or []:
            need(isinstance(a, dict) and "label" in a and "segment" in a)
            times = [reading_number(x, 0, clock=True) for x in pair(a["segment"])]
            rows.append((reading_label(a["label"]), *times))
        subset = entry.get("subset")
        if subset is not None and reading_label(subset) == "validation":
            key = reading_id(video)
            need(key not in found and all(start <= end for _, start, end in rows))
            found[key] = rows
        else:
            reading_id(video)
        labels |= {label for label, *_ in rows}
    return found, labels


def reading_found(content) -> dict:
    need(isinstance(content, dict) and isinstance(content.get("results"), dict))
    found = {}
    for video, entries in content["results"].items():
        need(isinstance(entries, list | None))
        key = reading_id(video) if video else video
        need(key not in found)
        found[key] = []
        for e in entries or []:
            need(isinstance(e, dict) and {"segment", "score", "label"} <= e.keys())
            start, end = map(reading_number, pair(e["segment"]))
            need(start <= end)
            found[key].append((reading_label(e["label"]), start, end, reading_number(e["score"])))
    return found


def from_csv(text: str, numbers: tuple[str, ...]) -> dict[str, list[dict]]:
    """Rows by video; the cells of `numbers` are parsed later."""
    lines = [line for line in text.splitlines() if line.strip(", \r")]
    need(lines and set(HEADER.split(",")[:4]) <= set(lines[0].split(",")))
    found = {}
    for line in lines[1:]:
        cells = [cell.strip() for cell in line.split(",")]
        need(len(cells) <= len(lines[0].split(",")))
        row = dict(zip(lines[0].split(","), cells))
        found.setdefault(row.get("video", ""), []).append(row)
    return found


def oracle(truth_, labels, found) -> np.ndarray:
    """AP by plain loops; what has no length lies far away, where nothing meets it."""
    database, results = {}, {}
    for video, rows in truth_.items():
        spans = [(a, [s, e] if e > s else [-1e9, -1e9 + 1]) for a, s, e in rows]
        annotations = [{"label": a, "segment": span} for a, span in spans]
        database[video] = {"subset": "validation", "annotations": annotations}
    known = {label for rows in truth_.values() for label, *_ in rows}
    need(known)
    for video, rows in found.items():
        need(all(row[0] in labels for row in rows))
        results[video] = [
            {"label": a, "segment": [s, e], "score": c} for a, s, e, c in rows if a in known
        ]
    with np.errstate(all="ignore"):
        return plain_map({"database": database}, {"results": results}, "validation", TIOUS)


ODD = [None, True, False, "", " ", "x", "nan", "NaN", "inf", "-inf", math.nan, math.inf, -math.inf,
       -1, -0.5, 0, 1, 2.5, "2.5", " 3 ", "1_0", "١", "0x1", "1e0", 10**400, [], [1], {}, {"a": 1},
       "0:03", "1:02:03.5", "1:60", "0:0:0:0", ":5", "5:", "1,5", [1, 2], "café", 3, "3",
       "cafe\u0301", [[0, 1]], "12", "v_a", "validation"]  # fmt: skip


def base(random_) -> tuple[dict, dict]:
    labels, database, results = ["run", "café", "3"], {}, {}
    for video in ("a", "v_b", "c.mp4", "d"):
        rows = []
        for _ in range(random_.randint(1, 3)):
            start = random_.randint(0, 40) / 4
            end = start + random_.randint(0, 12) / 4
            rows.append({"label": random_.choice(labels), "segment": [start, end]})
        subset = "training" if video == "d" else "validation"
        database[video] = {"subset": subset, "duration": 20.0, "annotations": rows}
        results[reading_id(video)] = [
            {
                "label": row["label"],
                "score": random_.randint(1, 99) / 100 + i / 1000,
                "segment": [row["segment"][0], row["segment"][1] + random_.randint(0, 3) / 4],
            }
            for i, row in enumerate(rows * 2)
        ]
    database["d"]["annotations"] = [{"label": x, "segment": [0, 1]} for x in labels]
    return {"database": database}, {"version": "1", "results": results, "external_data": {}}


def places(value, path=()) -> list[tuple]:
    """Paths to everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    below = [places(x, (*path, k)) for k, x in items if isinstance(x, dict | list)]
    return [(*path, k) for k, _ in items] + sum(below, [])


def mutated_json(random_, content) -> bytes:
    kind = random_.random()
    if kind < 0.4:  # a value
        path = random_.choice([p for p in places(content) if p[0] != "external_data"])
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        if random_.random() < 0.15:
            del inner[path[-1]]
        elif isinstance(inner, dict) and random_.random() < 0.2:  # a key
            inner[random_.choice(["v_a", "a", "b.webm", "", "x", "label"])] = inner.pop(path[-1])
        elif random_.random() < 0.1 and path[-1] == "segment":
            inner[path[-1]] = inner[path[-1]][::-1]
        else:
            inner[path[-1]] = random_.choice(ODD)
    ascii_ = random_.random() < 0.5
    text = json.dumps(content, ensure_ascii=ascii_, indent=random_.choice([None, 1]))
    if random_.random() < 0.05:  # a key twice
        key = random_.choice(['"a"', '"label"', '"score"', '"subset"'])
        text = text.replace(f"{key}:", f"{key}: null, {key}:", 1)
    if kind > 0.85:
        return text.encode(random_.choice(["utf-16", "cp1252", "utf-8-sig"]))
    return mutated_bytes(random_, text.encode()) if 0.4 < kind < 0.75 else text.encode()


def mutated_bytes(random_, data: bytes) -> bytes:
    data = bytearray(data)
    for _ in range(random_.randint(1, 3)):
        place = random_.randrange(len(data))
        data[place] = random_.choice(b"0123456789.,:;-{}[]\"'\nabcnulltrue eE\xe9\xff\0\\/")
    return bytes(data[: random_.randrange(len(data))] if random_.random() < 0.1 else data)


def outcome(command, *args, **options):
    """None when it worked, else the one line that the command line would print."""
    try:
        command(*args, **options)
    except SystemExit as end:
        assert end.code == 1
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 600, text
        return text
    return None


def judged(read) -> object:
    try:
        return read()
    except (Nonsense, ValueError, RecursionError):  # ValueError: not UTF-8, no JSON
        return None


def agree(tmp_path, truth_path, found_path, expected, note) -> None:
    """`evaluate` gives the AP of the oracle, or refuses as it does; the others do not crash."""
    out = tmp_path / "out.json"
    problem = outcome(commands.evaluate, truth_path, found_path, json=out)
    if expected is None:
        assert problem, f"a number out of nonsense: {note}"
        return
    assert problem is None, f"{problem}: {note}"
    np.testing.assert_array_equal(json.loads(out.read_text())["ap"], expected, note)


@pytest.mark.parametrize("which", ["truth", "detections"])
def test_fuzzed_json_gives_the_oracle_or_one_line(tmp_path, which, capsys):
    random_, paths, refused = random.Random(which), [tmp_path / "t.json", tmp_path / "d.json"], 0
    for case in range(CASES):
        contents = list(base(random_))
        data = [json.dumps(content).encode() for content in contents]
        changed = 0 if which == "truth" else 1
        data[changed] = mutated_json(random_, contents[changed])
        for path, content in zip(paths, data):
            path.write_bytes(content)

        def read(data=data):
            truth_, found = (
                json.loads(content.decode("utf-8-sig"), object_pairs_hook=once) for content in data
            )
            truth_, labels = reading_truth(truth_)
            return oracle(truth_, labels, reading_found(found))

        expected = judged(read)
        refused += expected is None
        agree(tmp_path, *paths, expected, (case, data[changed]))
        if case % 4 == 0:
            problems = [
                outcome(commands.diagnose, *paths, json=tmp_path / "out.json"),
                outcome(commands.recall, *paths, json=tmp_path / "out.json"),
            ]
            assert bool(problems[0]) == (expected is None), (case, data[changed])
            outcome(commands.check, paths[0])
        capsys.readouterr()
    assert CASES / 6 < refused < CASES * 9 / 10  # both kinds: about five in six are refused


def test_fuzzed_csv_gives_the_oracle_or_one_line(tmp_path, capsys):
    random_, refused = random.Random(2), 0
    for case in range(CASES):
        truth_, found = base(random_)
        lines = {
            "t": [HEADER, *(
                f"{v},{a['segment'][0]},{a['segment'][1]},{a['label']},{e['subset']}"
                for v, e in truth_["database"].items() for a in e["annotations"]
            )],
            "d": ["video,start_s,end_s,label,score", *(
                f"{v},{e['segment'][0]},{e['segment'][1]},{e['label']},{e['score']}"
                for v, es in found["results"].items() for e in es
            )],
        }  # fmt: skip
        which = random_.choice("td")
        mine = lines[which]
        if random_.random() < 0.5:
            i = random_.randrange(len(mine))
            cells = mine[i].split(",")
            odd = [x for x in ODD if isinstance(x, str | float | int) and "," not in str(x)[:9]]
            cells[random_.randrange(5)] = str(random_.choice(odd))[:9]
            mine[i] = ",".join(cells)
        data = {name: "\n".join(rows + [""]).encode() for name, rows in lines.items()}
        if random_.random() < 0.4:
            data[which] = mutated_bytes(random_, data[which])
        paths = [tmp_path / f"{name}.csv" for name in "td"]
        for path, content in zip(paths, data.values()):
            path.write_bytes(content)
        if any(x in data[which] for x in (b'"', b";", b"\0")):  # the simple reading knows no quotes
            outcome(commands.evaluate, *paths)
            continue

        def read(data=data):
            texts = [content.decode("utf-8") for content in data.values()]
            need(not any(text.lstrip()[:1] in ("{", "[", "") for text in texts))
            truth_, found, labels = {}, {}, set()
            header = texts[0].splitlines()[0].split(",")
            with_subset = "subset" in header
            subsets = {}
            for video, rows in from_csv(texts[0], ()).items():
                need(video and not any(bad in video for bad in ("/", "\\", "..", "\0")))
                stem = re.sub(r"(?<=.)\.(mp4|mkv|webm|avi|mov)$", "", video)
                for row in rows:
                    subset = row.get("subset") if with_subset else None
                    need(not subset or subsets.setdefault(stem, subset) == subset)
                    if not any(row.get(n) for n in ("start_s", "end_s", "label")):
                        continue
                    times = [reading_number(row.get(n), 0, True) for n in ("start_s", "end_s")]
                    label = reading_label(row.get("label"))
                    need(times[0] <= times[1])
                    truth_.setdefault(stem, []).append((label, *times))
                    labels.add(label)
            chosen = {}
            for video, rows in truth_.items():
                if subsets.get(video) == "validation":
                    need(reading_id(video) not in chosen)
                    chosen[reading_id(video)] = rows
            for video, rows in from_csv(texts[1], ()).items():
                need(video and reading_id(video) not in found)
                found[reading_id(video)] = [
                    (reading_label(r.get("label")), reading_number(r.get("start_s")),
                     reading_number(r.get("end_s")), reading_number(r.get("score")))
                    for r in rows
                ]  # fmt: skip
                need(all(s <= e for _, s, e, _ in found[reading_id(video)]))
            return oracle(chosen, labels, found)

        expected = judged(read)
        refused += expected is None
        agree(tmp_path, *paths, expected, (case, data[which]))
        capsys.readouterr()
    assert CASES / 8 < refused < CASES * 7 / 8


def test_fuzzed_features_are_right_or_one_line(tmp_path):
    random_, read = random.Random(3), 0
    for case in range(2 * CASES):
        rng = np.random.default_rng(case)
        rows = rng.standard_normal((random_.randint(4, 9), 3)).astype(np.float32)
        kind = random_.choice(["csv", "npy", "npz"])
        path, expected = tmp_path / f"a.{kind}", rows.T
        turned = rows.T if random_.random() < 0.3 else rows
        if kind == "csv":
            header = random_.choice(["", "f0,f1,f2", "0,1,2"]) if turned is rows else ""
            text = features_csv(turned, header)
            lines = text.splitlines()
            if random_.random() < 0.6:
                i = random_.randrange(bool(header), len(lines))
                cells = lines[i].split(",")
                cells[random_.randrange(len(cells))] = random_.choice(
                    ["nan", "", "x", "1e99", "inf"]
                )
                lines[i], expected = ",".join(cells), None
            path.write_text("\n".join(lines) + "\n")
        else:
            (np.save if kind == "npy" else np.savez)(path, turned)
            if random_.random() < 0.5:
                data = bytearray(path.read_bytes())
                if random_.random() < 0.5:
                    data, expected = data[: random_.randrange(len(data) - 1)], None
                elif kind == "npz":
                    data[random_.randrange(60, len(data))] ^= 1 << random_.randrange(8)
                path.write_bytes(data)
        try:
            found = read_published(path, PublishedFeatures(width=3)).numpy()
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            assert expected is None or kind == "npz", (case, str(error))
        else:
            assert expected is not None, case
            np.testing.assert_array_equal(found, expected, str(case))
            read += 1
    assert CASES / 2 < read < 2 * CASES - CASES / 4
