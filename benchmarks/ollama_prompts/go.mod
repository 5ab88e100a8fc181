module prompts
go 1.21
