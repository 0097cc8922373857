-- Ready queries over the views of views.sql (results, recount_plan, summary, counted): committed nights only.
-- They run as they are in DuckDB, and one by one in Polars (SQLContext), Athena and Spark.
-- Negative variance is a shortage, and p_record_wrong is the probability that a record is wrong. record_model says whether
-- what is claimed rests on recounts (learned) or not yet (assumed).

-- name: top_suspects
-- The last night's most doubtful bins.
SELECT
  r.audit_date, r.rank, r.bin_id, r.zone, r.sku, r.num_skus, r.expected_qty, r.camera_qty, r.qty_low, r.qty_high,
  r.likely_qty, r.p_record_wrong, r.p_short, r.p_over, r.expected_variance_qty, r.value_at_risk, r.currency, r.verdict,
  r.recount, s.record_model
FROM results AS r
JOIN (SELECT MAX(audit_date) AS audit_date FROM summary WHERE scope = 'all') AS latest
  ON r.audit_date = latest.audit_date
JOIN summary AS s ON r.audit_date = s.audit_date
WHERE s.scope = 'all' AND r.verdict IN ('suspect', 'certified')
ORDER BY r.p_record_wrong DESC, r.bin_id
LIMIT 100;

-- name: accuracy_trend
-- Record accuracy by night, and how many pieces the records are off by, net and gross (a level, not a loss a night), each with
-- its 95 % interval, and null where no random recounts allow a claim.
SELECT
  audit_date, num_bins, coverage, ira, 1 - error_rate_high AS ira_low, 1 - error_rate_low AS ira_high,
  net_variance_units, net_variance_units_low, net_variance_units_high,
  gross_variance_units, gross_variance_units_low, gross_variance_units_high,
  num_random_window, estimator, record_model, list_precision_window, naive_precision_window,
  record_outside_set_share, drift_alarm
FROM summary
WHERE scope = 'all'
ORDER BY audit_date;

-- name: repeat_offenders
-- Bins found wrong in at least two ways, as recorded and found quantity: wrong again after a correction, or never corrected
-- while stock moved. The same finding twice counts once, as one error that nobody corrected. Of all counts of a bin for
-- one night a quantity stands once it is confirmed or two people (counter_id) have found it, and of several such
-- quantities the one that was counted last. Of one person's mismatches the last is meant, unless that person has found the recorded quantity since.
WITH of_person AS (
  SELECT
    audit_date, bin_id, expected_qty, counter_id,
    MAX(CASE WHEN counted_qty <> expected_qty THEN counted_at END) AS counted_at,
    MAX(CASE WHEN counted_qty = expected_qty THEN counted_at END) AS right_at
  FROM counted
  WHERE counter_id IS NOT NULL
  GROUP BY audit_date, bin_id, expected_qty, counter_id
),
meant AS (
  SELECT c.audit_date, c.bin_id, c.expected_qty, c.counted_qty, c.counted_at, c.counter_id, c.confirmed
  FROM counted AS c
  LEFT JOIN of_person AS m
    ON c.audit_date = m.audit_date AND c.bin_id = m.bin_id AND c.expected_qty = m.expected_qty
    AND c.counter_id = m.counter_id
  WHERE c.counted_qty = c.expected_qty OR c.counter_id IS NULL OR COALESCE(c.confirmed, FALSE)
    OR (c.counted_at = m.counted_at AND c.counted_at >= COALESCE(m.right_at, c.counted_at))
),
settled AS (
  SELECT audit_date, bin_id, expected_qty, counted_qty, MAX(counted_at) AS counted_at
  FROM meant
  GROUP BY audit_date, bin_id, expected_qty, counted_qty
  HAVING MAX(CASE WHEN confirmed THEN 1 ELSE 0 END) = 1 OR COUNT(DISTINCT counter_id) > 1
),
latest AS (
  SELECT audit_date, bin_id, expected_qty, MAX(counted_at) AS counted_at
  FROM settled
  GROUP BY audit_date, bin_id, expected_qty
),
findings AS (
  SELECT s.audit_date, s.bin_id, s.expected_qty, MAX(s.counted_qty) AS counted_qty, MAX(s.counted_at) AS counted_at
  FROM settled AS s
  JOIN latest AS l
    ON s.audit_date = l.audit_date AND s.bin_id = l.bin_id AND s.expected_qty = l.expected_qty
    AND s.counted_at = l.counted_at
  GROUP BY s.audit_date, s.bin_id, s.expected_qty
),
errors AS (
  SELECT bin_id, expected_qty, counted_qty, MAX(counted_at) AS counted_at
  FROM findings
  WHERE counted_qty <> expected_qty
  GROUP BY bin_id, expected_qty, counted_qty
)
SELECT
  bin_id, COUNT(*) AS num_wrong, SUM(CAST(counted_qty AS BIGINT) - expected_qty) AS net_variance_qty,
  MAX(counted_at) AS last_wrong_at
FROM errors
GROUP BY bin_id
HAVING COUNT(*) >= 2
ORDER BY num_wrong DESC, bin_id;

-- name: shortage_by_sku
-- The last night's expected shortage and overage by SKU. A bin that may be short and may be over counts in both. The
-- camera gives a bin's total, so only bins of one SKU say which SKU is short, and mixed bins stand as 'SKU unknown'.
-- coverage: assessed bins over bins, and share_of_units: of all recorded units. Values are null where no assessed bin has
-- one, and where they are in several currencies (a value that names none is in a currency of its own).
WITH night AS (
  SELECT
    CASE WHEN r.num_skus = 1 THEN COALESCE(r.sku, 'SKU unknown')
      WHEN r.num_skus = 0 THEN 'no SKU recorded' ELSE 'SKU unknown' END AS sku,
    CAST(r.expected_qty AS BIGINT) AS expected_qty, r.unit_value, s.record_model,
    CASE WHEN r.verdict = 'not_assessed' THEN 0 ELSE 1 END AS assessed,
    CASE WHEN r.verdict <> 'not_assessed' THEN (r.expected_abs_variance_qty - r.expected_variance_qty) / 2 END
      AS shortage_qty,
    CASE WHEN r.verdict <> 'not_assessed' THEN (r.expected_abs_variance_qty + r.expected_variance_qty) / 2 END
      AS overage_qty,
    CASE WHEN r.verdict <> 'not_assessed' AND r.unit_value IS NOT NULL THEN COALESCE(r.currency, '') END AS currency
  FROM results AS r
  JOIN (SELECT MAX(audit_date) AS audit_date FROM summary WHERE scope = 'all') AS latest
    ON r.audit_date = latest.audit_date
  JOIN summary AS s ON r.audit_date = s.audit_date
  WHERE s.scope = 'all'
),
total AS (
  SELECT SUM(expected_qty) AS units FROM night
)
SELECT
  n.sku, COUNT(*) AS num_bins, AVG(n.assessed) AS coverage, SUM(n.expected_qty) AS recorded_units,
  CAST(SUM(n.expected_qty) AS DOUBLE) / NULLIF(MAX(t.units), 0) AS share_of_units,
  CASE WHEN SUM(n.assessed) > 0 THEN SUM(n.shortage_qty) END AS shortage_units,
  CASE WHEN SUM(n.assessed) > 0 THEN SUM(n.overage_qty) END AS overage_units,
  CASE WHEN MIN(n.currency) = MAX(n.currency) THEN SUM(n.shortage_qty * n.unit_value) END AS shortage_value,
  CASE WHEN MIN(n.currency) = MAX(n.currency) THEN SUM(n.overage_qty * n.unit_value) END AS overage_value,
  CASE WHEN MIN(n.currency) = MAX(n.currency) THEN MAX(n.currency) END AS currency,
  MAX(n.record_model) AS record_model
FROM night AS n
CROSS JOIN total AS t
GROUP BY n.sku
ORDER BY shortage_units DESC NULLS LAST, n.sku;

-- name: worst_zones
-- The last night's zones by value at risk, else by the wrong records expected. Values are null where a zone has none, or
-- the night several currencies.
SELECT
  s.audit_date, s.scope_value AS zone, s.num_bins, s.coverage, s.num_suspect + s.num_certified AS num_suspect_or_certified,
  CASE WHEN s.num_assessed > 0 THEN CAST(s.num_suspect + s.num_certified AS DOUBLE) / s.num_assessed END
    AS suspect_or_certified_share,
  s.expected_wrong, s.value_at_risk, s.shortage_value, s.overage_value, s.record_outside_set_share, s.record_model
FROM summary AS s
JOIN (SELECT MAX(audit_date) AS audit_date FROM summary WHERE scope = 'all') AS latest
  ON s.audit_date = latest.audit_date
WHERE s.scope = 'zone'
ORDER BY s.value_at_risk DESC NULLS LAST, s.expected_wrong DESC NULLS LAST, s.scope_value;
