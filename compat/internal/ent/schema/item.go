// Package schema is what entc generates internal/ent from.
package schema

import (
	"entgo.io/ent"
	"entgo.io/ent/schema/field"
)

// Item is the only entity.
type Item struct{ ent.Schema }

// Fields returns its columns.
func (Item) Fields() []ent.Field {
	return []ent.Field{
		field.String("name").Unique(),
		field.Int("quantity").Default(0),
	}
}
