package pgsql

import "testing"

func TestText(t *testing.T) {
	for s, want := range map[string]string{
		"primary": "'primary'::pg_catalog.text",
		"it's":    "pg_catalog.convert_from(pg_catalog.decode('69742773'::pg_catalog.text, 'hex'::pg_catalog.text), 'UTF8'::pg_catalog.name)",
		`a\b`:     "pg_catalog.convert_from(pg_catalog.decode('615c62'::pg_catalog.text, 'hex'::pg_catalog.text), 'UTF8'::pg_catalog.name)",
		"{name}":  "pg_catalog.convert_from(pg_catalog.decode('7b6e616d657d'::pg_catalog.text, 'hex'::pg_catalog.text), 'UTF8'::pg_catalog.name)",
	} {
		if got := Text(s); got != want {
			t.Errorf("%s: %s", s, got)
		}
	}
	if got := PlainIdentifier(`ops."Zürich ""\"`); got != `"ops".U&"Z\+0000fcrich ""\\"` {
		t.Error(got)
	}
	if got := PlainIdentifier(`ops."a b"`); got != `ops."a b"` {
		t.Error(got)
	}
}
