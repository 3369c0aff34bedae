"""complete_journey in SQL: from the source's files to users, ads, events and impressions, for one duckdb connection."""

from __future__ import annotations

#: Manufacturers that are no advertisers: produce, and mostly the store's own brand.
NOT_ADVERTISERS = (2, 69)
PROFILE = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")

#: In the order in which each builds on the one before.
SHARED = (
    # goods with readable text
    """
    CREATE TABLE goods AS
    SELECT product_id, manufacturer_id, d.readable AS department,
      product_category AS source_category, c.readable AS category, t.readable AS product_type
    FROM products LEFT JOIN department_text d ON d.source = department
    LEFT JOIN product_category_text c ON c.source = product_category
    LEFT JOIN product_type_text t ON t.source = product_type
    """,
    # a category's department is that of most of its products, so that it has one: the table of products has no times
    """
    CREATE TABLE parents AS
    SELECT category, first(department ORDER BY products DESC, department) AS department
    FROM (SELECT category, department, count(*) AS products FROM goods WHERE category IS NOT NULL GROUP BY ALL)
    GROUP BY category
    """,
    # one basket, one time: the earliest of its lines
    """
    CREATE TABLE baskets AS
    SELECT basket_id, any_value(household_id) AS household_id, any_value(store_id) AS store_id,
      any_value(week) AS week, min(transaction_timestamp) AS timestamp
    FROM transactions GROUP BY basket_id
    """,
    # visits of every profiled household, whatever the choice: they fix the catalog
    """
    CREATE TABLE visits AS
    SELECT household_id, store_id, week, min(timestamp) AS timestamp
    FROM baskets SEMI JOIN demographics USING (household_id) GROUP BY ALL
    """,
    # what may be advertised, by number: 21 million promotions are grouped by it, sooner than by texts
    f"""
    CREATE TABLE kinds AS
    SELECT *, row_number() OVER () AS kind FROM (
      SELECT DISTINCT manufacturer_id, source_category, category FROM goods
      WHERE manufacturer_id NOT IN {NOT_ADVERTISERS} AND category IS NOT NULL
    )
    """,
    "CREATE TABLE kind_of AS SELECT product_id, kind FROM goods JOIN kinds USING (manufacturer_id, category)",
    """
    CREATE TABLE mailed AS
    SELECT store_id, week, manufacturer_id, source_category, category, place AS placement, placements
    FROM (
      SELECT store_id, week, kind, min(prominence) AS prominence, bit_count(bit_or(1 << prominence)) AS placements
      FROM promotions JOIN kind_of USING (product_id) JOIN placement ON code = mailer_location GROUP BY ALL
    ) JOIN kinds USING (kind) JOIN placement USING (prominence)
    """,
    """
    CREATE TABLE ads AS
    SELECT manufacturer_id, category, 'm' || manufacturer_id || '/' || source_category AS ad_id,
      'm' || manufacturer_id AS advertiser_id, min(week) AS first_week
    FROM mailed SEMI JOIN visits USING (store_id, week) GROUP BY ALL
    """,
    "CREATE TABLE advertised AS SELECT DISTINCT manufacturer_id, advertiser_id FROM ads",
    """
    CREATE TABLE displayed AS
    SELECT store_id, week, manufacturer_id, category, products
    FROM (
      SELECT store_id, week, kind, count(DISTINCT product_id) AS products
      FROM promotions JOIN kind_of USING (product_id)
      SEMI JOIN (FROM visits SEMI JOIN chosen USING (household_id)) USING (store_id, week)
      SEMI JOIN (FROM kinds SEMI JOIN ads USING (manufacturer_id, category)) USING (kind)
      WHERE display_location <> '0' GROUP BY ALL
    ) JOIN kinds USING (kind)
    """,
)

OF_USERS = f"""
SELECT 'h' || household_id AS user_id, {", ".join(f"{field} AS profile_{field}" for field in PROFILE)}
FROM demographics SEMI JOIN chosen USING (household_id) ORDER BY household_id
"""

OF_ADS = """
SELECT ad_id, advertiser_id, category, department, first_week FROM ads LEFT JOIN parents USING (category) ORDER BY ad_id
"""

# goods of nobody in the catalog, and lines whose product is unknown, are events without advertiser
OF_EVENTS = """
SELECT 'h' || b.household_id AS user_id, b.timestamp, advertiser_id, category,
  coalesce(p.department, g.department) AS department, round(sum(sales_value), 2) AS value, product_type AS text
FROM transactions t JOIN baskets b USING (basket_id) SEMI JOIN chosen c ON c.household_id = b.household_id
LEFT JOIN goods g USING (product_id) LEFT JOIN parents p USING (category) LEFT JOIN advertised USING (manufacturer_id)
GROUP BY b.household_id, basket_id, b.timestamp, advertiser_id, category, coalesce(p.department, g.department), text
ORDER BY b.timestamp, b.household_id, basket_id, advertiser_id NULLS LAST, category NULLS LAST, text NULLS LAST,
  department NULLS LAST
"""

# in their order, without the number of a row; a number sorts sooner than an ad's name
OF_IMPRESSIONS = """
WITH slates AS (
  SELECT *, row_number() OVER (ORDER BY timestamp, household_id, store_id) - 1 AS slate_id
  FROM visits SEMI JOIN chosen USING (household_id) SEMI JOIN mailed USING (store_id, week)
), bought AS (
  SELECT DISTINCT b.household_id, b.store_id, b.week, manufacturer_id, category
  FROM transactions JOIN baskets b USING (basket_id) JOIN goods USING (product_id)
)
SELECT slate_id, 'h' || s.household_id AS user_id, ad_id, advertiser_id, s.timestamp,
  (b.household_id IS NOT NULL)::TINYINT AS label,
  placement AS context_placement, placements::INTEGER AS context_placements,
  coalesce(d.products, 0)::INTEGER AS context_display
FROM slates s JOIN mailed m USING (store_id, week)
JOIN (SELECT *, row_number() OVER (ORDER BY ad_id) AS place FROM ads) a USING (manufacturer_id, category)
LEFT JOIN bought b ON b.household_id = s.household_id AND b.store_id = s.store_id AND b.week = s.week
  AND b.manufacturer_id = m.manufacturer_id AND b.category = m.category
LEFT JOIN displayed d ON d.store_id = s.store_id AND d.week = s.week
  AND d.manufacturer_id = m.manufacturer_id AND d.category = m.category
ORDER BY slate_id, place
"""
