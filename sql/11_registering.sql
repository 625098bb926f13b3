-- Files, and what is known of them: that they predict what their own library says.

CREATE FUNCTION distill.register_model(
    name text, artifact bytea, features text[] DEFAULT NULL, sample text DEFAULT NULL, label text DEFAULT NULL,
    version text DEFAULT NULL, task text DEFAULT NULL, classes text[] DEFAULT NULL, expected text DEFAULT NULL,
    allow_difference boolean DEFAULT false, class_threshold float8 DEFAULT NULL,
    text_columns text[] DEFAULT NULL, tokenizer bytea DEFAULT NULL, max_tokens int DEFAULT 256
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.register_model(plpy, name, artifact, features, sample, label, version, task, classes, expected, allow_difference, class_threshold, text_columns, tokenizer, max_tokens)
$$;
COMMENT ON FUNCTION distill.register_model(text, bytea, text[], text, text, text, text, text[], text, boolean, float8, text[], bytea, int) IS
    'check an ONNX model, run it on rows of the sample, measure it and make it the active version of its name; expected: a column of what it is to predict, against which it is held; class_threshold: of two classes the probability from which it names the last one; tokenizer: the tokenizer.json of a transformer that reads one text column (input_ids, attention_mask, token_type_ids), max_tokens of each text at most; NULL is read as the empty text';

CREATE FUNCTION distill.register_model_file(
    name text, path text, features text[] DEFAULT NULL, sample text DEFAULT NULL, label text DEFAULT NULL,
    version text DEFAULT NULL, task text DEFAULT NULL, classes text[] DEFAULT NULL, expected text DEFAULT NULL,
    allow_difference boolean DEFAULT false, class_threshold float8 DEFAULT NULL,
    text_columns text[] DEFAULT NULL, tokenizer text DEFAULT NULL, max_tokens int DEFAULT 256
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.register_model_file(plpy, name, path, features, sample, label, version, task, classes, expected, allow_difference, class_threshold, text_columns, tokenizer, max_tokens)
$$;
COMMENT ON FUNCTION distill.register_model_file(text, text, text[], text, text, text, text, text[], text, boolean, float8, text[], text, int) IS
    'register_model for a file of the server, read by pg_read_binary_file under the caller''s rights; tokenizer: the path of a transformer''s tokenizer.json';

CREATE FUNCTION distill.register_sql_model(
    name text, expression text, features text[], sample text, label text DEFAULT NULL,
    version text DEFAULT NULL, task text DEFAULT NULL, classes text[] DEFAULT NULL, text_columns text[] DEFAULT NULL
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.register_sql_model(plpy, name, expression, features, sample, label, version, task, classes, text_columns)
$$;
COMMENT ON FUNCTION distill.register_sql_model(text, text, text[], text, text, text, text, text[], text[]) IS
    'register a SQL expression over the features as a model: a probability, an array of them, or a value';

CREATE FUNCTION distill.register_logged_model(
    name text, outputs text[], features text[], sample text, label text DEFAULT NULL,
    version text DEFAULT NULL, task text DEFAULT NULL, classes text[] DEFAULT NULL, latency_ms float8 DEFAULT NULL,
    text_columns text[] DEFAULT NULL
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.register_logged_model(plpy, name, outputs, features, sample, label, version, task, classes, latency_ms, text_columns)
$$;
COMMENT ON FUNCTION distill.register_logged_model(text, text[], text[], text, text, text, text, text[], float8, text[]) IS
    'register a teacher that runs elsewhere by the columns that hold its answers: probabilities, names of classes, or jsonb objects of both; its latency is declared';

CREATE FUNCTION distill._register_claimed(
    name text, artifact bytea, features text[], sample text, label text, version text, task text, classes text[], "rows" text[],
    arrays text[], expected text, origin text, allow_difference boolean, class_threshold float8
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.register_claimed(plpy, name, artifact, features, sample, label, version, task, classes, rows, arrays, expected, origin, allow_difference, class_threshold)
$$;
COMMENT ON FUNCTION distill._register_claimed(text, bytea, text[], text, text, text, text, text[], text[], text[], text, text, boolean, float8) IS
    'internal: register_model for pg-distill register, with rows and what the model''s own library says of them';
