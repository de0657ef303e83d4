"""COCO's questions have answers that its boxes prove."""

import json
import random
from collections import Counter

from support.packing import pack, rejected, samples
from support.samples import jpeg


def coco(tmp_path, count=30):
    """Squares of three categories on 200 x 100 images, and the truth about them by image and name."""
    rng = random.Random(0)
    names = {1: "cat", 2: "dog", 7: "traffic light"}
    images, annotations, truth = [], [], {}
    for key in range(count):
        name = f"{key:04d}.jpg"
        (tmp_path / name).write_bytes(jpeg((key, 9, 9), (200, 100)))
        images.append({"id": key, "file_name": name, "width": 200, "height": 100})
        for category in names:
            for _ in range(rng.choice([0, 1, 1, 3])):
                box = [rng.randrange(150), rng.randrange(60), rng.randrange(5, 50), rng.randrange(5, 40)]
                entry = {"id": len(annotations), "image_id": key, "category_id": category, "bbox": box}
                annotations.append(entry | {"iscrowd": 0})
                corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
                truth.setdefault((name, names[category]), []).append(corners)
    categories = [{"id": key, "name": name} for key, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, truth


def test_cocos_questions_are_answered_by_its_boxes(tmp_path):
    content, truth = coco(tmp_path)
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert pack(tmp_path / "coco.json", tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    wordings = Counter()
    for sample in found:
        name, kind, asked = sample.id.split(":")
        words = asked.split("+")
        boxes = [truth.get((name, word), []) for word in words]
        assert sample.boxes == tuple(box for some in boxes for box in some)
        assert all(word in sample.question for word in words)
        wordings[kind, sample.question.replace(words[0], "X").replace(words[-1], "Y")] += 1
        (x1, y1, x2, y2), *_ = boxes[0] or [(0, 0, 0, 0)]
        if kind == "where":
            row, column = sample.answer.split()
            assert ["upper", "middle", "lower"].index(row) == int((y1 + y2) / 2 / 100 * 3)
            assert ["left", "center", "right"].index(column) == int((x1 + x2) / 2 / 200 * 3)
        elif kind == "side":
            assert len(boxes[0]) == len(boxes[1]) == 1
            assert x2 <= boxes[1][0][0] if sample.answer == "left" else x1 >= boxes[1][0][2]
        else:
            assert sample.answer == {"count": str(len(boxes[0])), "present": "yes", "absent": "no"}[kind]
            assert (kind == "absent") == (not boxes[0]) == (sample.kind == "single")
    kinds = {kind for kind, _ in wordings}
    assert kinds == {"count", "present", "absent", "where", "side"}
    assert all(len([w for w in wordings if w[0] == kind]) > 1 for kind in kinds)


def test_cocos_questions_outlive_filtering(tmp_path):
    content, _ = coco(tmp_path)
    (tmp_path / "all.json").write_text(json.dumps(content))
    kept = {image["id"] for image in content["images"][::3]}
    half = {
        "images": [image for image in content["images"] if image["id"] in kept],
        "annotations": [entry for entry in content["annotations"] if entry["image_id"] in kept],
        "categories": content["categories"][::-1],
    }
    (tmp_path / "half.json").write_text(json.dumps(half))
    assert (
        pack(tmp_path / "all.json", tmp_path / "a") == 0 and pack(tmp_path / "half.json", tmp_path / "b") == 0
    )
    everything = {sample.id: sample for sample in samples(tmp_path / "a")}
    some = samples(tmp_path / "b")
    assert some and all(everything[sample.id] == sample for sample in some)


def test_what_coco_does_not_know_is_not_asked(tmp_path):
    """A crowd or an unusable box leaves the count unknown, and neither is the thing absent."""
    content, _ = coco(tmp_path, 1)
    content["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 0, 5]},
        {"id": 2, "image_id": 0, "category_id": 2, "bbox": [1, 1, 9, 9], "iscrowd": 1},
        {"id": 3, "image_id": 0, "category_id": 9, "bbox": [1, 1, 9, 9]},
        {"id": 4, "image_id": 5, "category_id": 1, "bbox": [1, 1, 9, 9]},
        [],
    ]
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert pack(tmp_path / "coco.json", tmp_path / "out") == 1
    assert [s.id for s in samples(tmp_path / "out")] == ["0000.jpg:absent:traffic light"]
    said = [entry["reason"] for entry in rejected(tmp_path / "out")]
    assert len(said) == 4 and all(word in " ".join(said) for word in ("area", "category_id 9", "image_id 5"))
