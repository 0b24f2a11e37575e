package store

// The SQL of the table "label", which triggers of the table "job" keep: see source.
const (
	labelByName  = `label INDEXED BY label_name`
	labelByValue = `label INDEXED BY label_value`

	labelNameIs  = `name = ? AND `
	labelValueIs = `value = ? AND `
)
