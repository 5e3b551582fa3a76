"""VideoMAE encoders against numbers of the repository's own class."""

import json

import numpy as np
import torch
from test_encoders import reference_numbers

from lofi.encoders.vit import VideoViT


def test_features_equal_the_public_code(golden):
    facts = json.loads(golden("videomaev2.json").read_text())
    state = {}
    for name, shape in facts["state_dict"]:
        z = reference_numbers(name, facts["weight_salt"], shape)
        if name.endswith("bias"):
            z = 0.05 * z
        elif len(shape) == 1:
            z = 1 + 0.1 * z
        else:
            z = z / np.sqrt(np.prod(shape[1:]))
        state[name] = torch.from_numpy(z.astype(np.float32))
    encoder = VideoViT("small", 14, 44, 3, 4, 192)
    head = {name: state.pop(name) for name in ("head.weight", "head.bias")}
    encoder.load_state_dict(state)
    expected = np.load(golden("videomaev2.npz"))
    z = reference_numbers("input:videomaev2", facts["input_salt"], [2, 3, 16, 42, 42])
    with torch.no_grad():
        found = encoder(torch.from_numpy(z.astype(np.float32)).transpose(1, 2))
    np.testing.assert_allclose(found, expected["feature"], atol=1e-5)
    logits = found @ head["head.weight"].T + head["head.bias"]
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)
