from melp.hub.push import main

if __name__ == "__main__":
    main()
