"""The plain way to serve a Feast model, as its documentation shows: one SDK call for user × candidates, ``to_dict``,
a pandas frame, LightGBM. The same HTTP server and one process, so that only the way differs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import uvicorn
from fastapi import FastAPI
from feast import FeatureStore


def main() -> None:
    repo, ranker, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    store = FeatureStore(repo_path=str(repo))
    service = store.get_feature_service("ranker_with_priors_v1")
    booster = lgb.Booster(model_file=str(ranker / "model.txt"))
    width = booster.num_feature()
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/rank")
    def rank(body: dict[str, Any]) -> dict[str, Any]:
        ads = body["candidates"]
        rows = [{"user_id": body["user_id"], "ad_id": ad} for ad in ads]
        features = store.get_online_features(features=service, entity_rows=rows, full_feature_names=True).to_dict()
        frame = pd.DataFrame(features)
        # numbers only, as many columns as the model has: what it costs, not what it says
        numbers = frame.select_dtypes("number").to_numpy(dtype=np.float32)
        matrix = np.full((len(ads), width), np.nan, dtype=np.float32)
        matrix[:, : min(width, numbers.shape[1])] = numbers[:, :width]
        scores = booster.predict(matrix, num_threads=1)
        order = np.argsort(-scores)[: body["slots"]]
        return {"slots": [{"ad_id": ads[i], "score": float(scores[i])} for i in order]}

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
