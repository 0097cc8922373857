"""The summary: one row per night and scope; its Parquet file is the one object that commits a night.

As in the other tables, `audit_date` is the partition (`summary/audit_date=D/summary.parquet`) and not in the file: Athena
refuses a column that is both, and readers give the partition one type in all tables.
"""

from __future__ import annotations

import pyarrow as pa

from schemas.arrow import column

_COUNT, _SHARE, _VALUE = pa.int64(), pa.float32(), pa.float64()

SUMMARY_SCHEMA = pa.schema(
    [
        column("run_id", pa.string(), "The run that the night was committed by.", required=True),
        column("scope", pa.string(), "all, zone, abc_class or expected_qty.", required=True),
        column("scope_value", pa.string(), "Which zone, class or quantity; null for all."),
        column("num_bins", _COUNT, "Bins in the manifest.", required=True),
        column("num_scored", _COUNT, "Bins whose photo was scored.", required=True),
        column("num_missing_image", _COUNT, "Bins without a photo.", required=True),
        column("num_fetch_failed", _COUNT, "Bins whose photo could not be fetched.", required=True),
        column("num_unreadable_image", _COUNT, "Bins whose photo is no whole image.", required=True),
        column("num_image_rejected", _COUNT, "Bins whose photo is beyond the limits or allowed roots.", required=True),
        column("num_assessed", _COUNT, "Bins with a verdict other than not_assessed.", required=True),
        column("coverage", _SHARE, "num_assessed over num_bins."),
        column("recorded_units", _COUNT, "Sum of expected_qty.", required=True),
        column("recorded_value", _VALUE, "Sum of expected_qty times unit_value, where given."),
        column("num_suspect", _COUNT, "Bins with verdict suspect.", required=True),
        column("num_certified", _COUNT, "Bins with verdict certified.", required=True),
        column("num_priority", _COUNT, "Priority recounts in tonight's plan.", required=True),
        column("num_random", _COUNT, "Random recounts in tonight's plan.", required=True),
        column("alpha", _SHARE, "Largest false-discovery rate that certificates were given at."),
        column("exp_wrong_in_list", _SHARE, "Sum of p_record_wrong over the priority list: hits it claims."),
        column("expected_wrong", _VALUE, "Sum of p_record_wrong over the assessed bins."),
        column("naive_mismatch_share", _SHARE, "Share of scored bins where camera and record differ; for comparison."),
        column("record_model", pa.string(), "assumed (too few random recounts yet) or learned.", required=True),
        column(
            "error_rate",
            _SHARE,
            "Estimated share of wrong records among the assessed bins, within what people have settled as wrong and as right; null without random recounts.",
        ),
        column(
            "error_rate_low",
            _SHARE,
            "Lower end of its 95 % interval; unconfirmed mismatches and planned bins that nobody counted taken as right.",
        ),
        column(
            "error_rate_high",
            _SHARE,
            "Upper end of its 95 % interval; planned bins that nobody counted taken as wrong.",
        ),
        column("ira", _SHARE, "Inventory record accuracy, exact, share of assessed bins: 1 - error_rate."),
        column("estimator", pa.string(), "stratified_difference, wilson or none.", required=True),
        column("window_nights", _COUNT, "Nights whose recounts are pooled.", required=True),
        column(
            "num_random_window",
            _COUNT,
            "Resolved random recounts of the window's nights with 90 % of them resolved.",
            required=True,
        ),
        column(
            "num_priority_window",
            _COUNT,
            "Resolved priority recounts of the window's lists that are 90 % resolved.",
            required=True,
        ),
        column("num_pending_window", _COUNT, "Planned recounts in the window not yet resolved.", required=True),
        column("net_variance_predicted", _VALUE, "Sum of expected_variance_qty over the assessed bins."),
        column("gross_variance_predicted", _VALUE, "Sum of expected_abs_variance_qty over the assessed bins."),
        column(
            "net_variance_units",
            _VALUE,
            "Estimated sum of true - recorded pieces over the assessed bins of an average night of the window, a level; null without random recounts.",
        ),
        column("net_variance_units_low", _VALUE, "Lower end of its 95 % interval, also over nights not confirmed yet."),
        column("net_variance_units_high", _VALUE, "Upper end of its 95 % interval."),
        column(
            "gross_variance_units",
            _VALUE,
            "Estimated sum of |true - recorded| pieces over the assessed bins of an average night of the window, no lower than what people have settled.",
        ),
        column("gross_variance_units_low", _VALUE, "Lower end of its 95 % interval."),
        column("gross_variance_units_high", _VALUE, "Upper end of its 95 % interval."),
        column(
            "net_variance_value",
            _VALUE,
            "Estimated sum of true - recorded pieces times unit_value, where given, over the assessed bins of an average night of the window, a level, in the window's currency.",
        ),
        column("net_variance_value_low", _VALUE, "Lower end of its 95 % interval."),
        column("net_variance_value_high", _VALUE, "Upper end of its 95 % interval."),
        column(
            "shortage_value",
            _VALUE,
            "Predicted value of missing pieces, where unit_value is given; money is null for several currencies.",
        ),
        column("overage_value", _VALUE, "Predicted value of surplus pieces, where unit_value is given."),
        column(
            "value_at_risk",
            _VALUE,
            "Sum of value_at_risk, where given, over assessed bins: shortage_value + overage_value.",
        ),
        column(
            "found_value_window",
            _VALUE,
            "Value of differences that the window's 90 % resolved lists found, of bins with a unit_value.",
        ),
        column(
            "claimed_over_found",
            _SHARE,
            "Hits claimed by the window's priority lists over hits found, K or more as one quantity; null where none was found.",
        ),
        column("list_precision_window", _SHARE, "Share of the window's priority recounts that found a wrong record."),
        column("list_precision_window_low", _SHARE, "Lower end of its 95 % interval."),
        column("list_precision_window_high", _SHARE, "Upper end of its 95 % interval."),
        column("naive_precision_window", _SHARE, "The same for random bins where camera and record differed."),
        column(
            "ece_window",
            _SHARE,
            "Calibration error of p_record_wrong on the window's random recounts, less its floor by chance.",
        ),
        column(
            "record_outside_set_share",
            _SHARE,
            "Share of records outside the camera's 90 % set: of those whose own probability does not reach the set's threshold, even where qty_low to qty_high holds them.",
        ),
        column(
            "drill_recall",
            _SHARE,
            "Share of up to 1,000 records of bins that could be listed, altered on trial to another class, that would stand on tonight's priority list, weighted by how often such records are wrong: of fresh errors, as of those that have stood for long the visible ones are found already.",
        ),
        column("drift_alarm", pa.bool_(), "Whether the night's share left its range; certificates are then suspended."),
        column(
            "record_error_rate_used",
            _SHARE,
            "Error rate of the record model in force, of records below K + 2, drawn towards 5 % as by 50 counted bins; in a zone's row the zone's, drawn towards that of all.",
        ),
        column(
            "label_noise_used", _SHARE, "Share of training labels taken to be wrong: assumed, or learned from recounts."
        ),
        column(
            "temperature",
            _SHARE,
            "That the logits are divided by, before a bias per class; null unless the calibration is one temperature.",
        ),
        column("bundle_id", pa.string(), "The bundle that scored the photos.", required=True),
        column("calibration_id", pa.string(), "Record model and calibration in force.", required=True),
        column(
            "images_per_second",
            _SHARE,
            "Images fetched and scored a second by the last try, the start of its workers included; null when all were staged.",
        ),
        column(
            "price_per_1000_images",
            _VALUE,
            "From --node-price, seconds and nodes; null without it, and of a night that was continued.",
        ),
    ]
)
