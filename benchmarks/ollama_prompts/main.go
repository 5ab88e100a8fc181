// Renders conversations with a template of Ollama's, as Ollama does: messages of one role that follow each other are
// one, and the template is given Messages and System. Reads {"template", "conversations": [[{"role", "content"}]]}
// from standard input, and writes the prompts as a JSON list.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type Asked struct {
	Template      string      `json:"template"`
	Conversations [][]Message `json:"conversations"`
}

func joined(messages []Message) (string, []*Message) {
	var system []string
	var together []*Message
	for _, message := range messages {
		if message.Role == "system" {
			system = append(system, message.Content)
		}
		if last := len(together) - 1; last >= 0 && together[last].Role == message.Role {
			together[last].Content += "\n\n" + message.Content
		} else {
			own := message
			together = append(together, &own)
		}
	}
	return strings.Join(system, "\n\n"), together
}

func main() {
	var asked []Asked
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	prompts := [][]string{}
	for _, one := range asked {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		own := []string{}
		for _, conversation := range one.Conversations {
			system, messages := joined(conversation)
			var text strings.Builder
			values := map[string]any{"System": system, "Messages": messages, "Response": ""}
			if err := parsed.Execute(&text, values); err != nil {
				panic(err)
			}
			own = append(own, text.String())
		}
		prompts = append(prompts, own)
	}
	if err := json.NewEncoder(os.Stdout).Encode(prompts); err != nil {
		panic(err)
	}
}
